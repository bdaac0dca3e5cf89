"""Pieces of forms: fields that are shown only where another one has a certain value, as Horizon's switchable does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from horizon import forms


def switch(slug: str, **attributes: str) -> dict[str, str]:
    """Of the field that decides."""
    return {"class": "switchable", "data-slug": slug, **attributes}


def shown_for(slug: str, values: Iterable[str], label: Any, **attributes: Any) -> dict[str, Any]:
    """Of a field that is there for these values only."""
    found = {f"data-{slug}-{value}": label for value in values}
    return {"class": "switched", "data-switch-on": slug, **found, **attributes}


def number(slug: str, values: Iterable[str], label: Any, *, most: int, least: int = 0) -> Any:
    attributes = shown_for(slug, values, label, min=least, max=most)
    return forms.IntegerField(
        label=label, required=False, min_value=least, max_value=most, widget=forms.NumberInput(attrs=attributes)
    )
