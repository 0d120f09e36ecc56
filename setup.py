"""Packages and the data that lies outside them: templates, firmware and recipes."""

from setuptools import find_packages, setup

FOLDERS = {
    "codegen_templates": "codegen_templates",
    "firmware": "firmware",
    "models": "models",
    "emulators": "host_tools/emulators",
}

setup(
    packages=[*find_packages("host_tools"), *(f"sparseflash.data.{f}" for f in FOLDERS)],
    package_dir={
        "": "host_tools",
        **{f"sparseflash.data.{f}": place for f, place in FOLDERS.items()},
    },
    package_data={f"sparseflash.data.{f}": ["**/*", "**/.*"] for f in FOLDERS},
)
