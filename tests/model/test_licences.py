"""docs/LICENCES.md names every recipe and text with the licence that its file gives."""

from __future__ import annotations

from sparseflash.base.files import parse_yaml, root
from sparseflash.model.recipes import load_recipe, recipe_names


def rows() -> dict[str, str]:
    """First cells of the tables, and the line of each."""
    text = (root() / "docs" / "LICENCES.md").read_text(encoding="utf-8")
    found = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            cell = line.split("|")[1]
            found |= {name: line for name in cell.split("`")[1::2]}
    return found


def test_every_recipe_and_text_is_named() -> None:
    listed = rows()
    for name in recipe_names():
        shipped = f"models/{name}"
        line = listed.get(name) or listed[shipped]
        assert load_recipe(name).licence in line, name
        if shipped in listed:
            assert (root() / shipped / "README.md").is_file()
    texts = parse_yaml((root() / "models" / "texts.yaml").read_text(encoding="utf-8"))
    for name, text in texts.items():
        assert text["licence"] in listed[name], name


def test_a_derived_model_carries_its_licence() -> None:
    for name in recipe_names():
        if load_recipe(name).licence == "Apache-2.0" and (root() / "models" / name).is_dir():
            assert "Apache License" in (root() / "models" / name / "LICENSE").read_text()
