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


def entry_point(workflow: Any) -> str:
    """Of a workflow whose fields have values from the start: the first step, or the one that has errors."""
    steps = list(workflow.steps)
    return str(next((step.slug for step in steps if step.has_errors), steps[0].slug))


def show_error(workflow: Any, slug: str, said: str) -> None:
    """What the API refused, above the fields of a step, which is the one that is shown then."""
    workflow.add_error_to_step(said, slug)
    workflow.get_step(slug).has_errors = True


def prepare(workflow: Any) -> None:
    """Read all that its steps choose from before the page is begun: what goes wrong is said on this page, then."""
    for step in workflow.steps:
        _ = step.action
