"""Packages and the data that lies outside them: templates, firmware and recipes."""

from setuptools import find_packages, setup

FOLDERS = ("codegen_templates", "firmware", "models")

setup(
    packages=[*find_packages("host_tools"), *(f"sparseflash.data.{f}" for f in FOLDERS)],
    package_dir={"": "host_tools", **{f"sparseflash.data.{f}": f for f in FOLDERS}},
    package_data={f"sparseflash.data.{f}": ["**/*", "**/.*"] for f in FOLDERS},
)
