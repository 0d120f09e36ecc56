"""A plan as it is kept: plan.json, read back and checked, and its digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sparseflash.base.errors import InputError
from sparseflash.base.files import parse_json


def read_plan(path: Path) -> dict[str, Any]:
    """A plan.json. Raises InputError when it is damaged."""
    try:
        plan = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(
            f"{path}: no readable plan ({e}); run sparseflash generate and flash again"
        ) from e
    if not isinstance(plan, dict) or not {"model_sha", "thresholds", "memory", "image"} <= set(
        plan
    ):
        raise InputError(f"{path}: not a plan; run sparseflash generate and flash again")
    return plan


def plan_digest(plan: dict[str, Any]) -> bytes:
    """SHA-256 of the canonical JSON of a plan."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).digest()
