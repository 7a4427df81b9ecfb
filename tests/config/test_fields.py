"""Limits and rules beside the fields, on toy settings."""

from dataclasses import dataclass, field

import pytest

from lossmix_det.config import Settings, check, flat
from lossmix_det.config.fields import choice, items, number, shares
from lossmix_det.errors import UserError


@dataclass
class Colour(Settings):
    name: str = choice("red", "green", gone={"crimson": "colour.name=red with colour.strength=2"})
    strength: float | None = number(None, 0, 2)


@dataclass
class Toy(Settings):
    colour: Colour = field(default_factory=Colour)
    table: dict[str, Colour] = field(default_factory=dict)
    low: int = number(1, 0, 9)
    high: int = number(2, 0, 9)
    parts: list[float] = items(0.5)

    def rules(self):
        return [(self.low < self.high, f"low={self.low} must be below high={self.high}"), shares("parts", self.parts)]


def complaint(toy: Toy, prefix: str = "") -> str:
    with pytest.raises(UserError) as error:
        check(toy, prefix)
    return str(error.value)


def test_settings_within_their_limits_pass():
    check(Toy(table={"a": Colour("green", 2)}))


@pytest.mark.parametrize(
    ("toy", "message"),
    [
        (Toy(Colour("gren")), "colour.name='gren' is not one of red, green (did you mean 'green'?)"),
        (Toy(Colour(strength=3)), "colour.strength=3 lies outside of 0 … 2"),
        (Toy(table={"a": Colour(strength=3)}), "table.a.strength=3 lies outside of 0 … 2"),
        (Toy(low=2), "low=2 must be below high=2"),
        (Toy(parts=[0.5, 2]), "parts=[0.5, 2] must lie within 0 … 1"),
    ],
)
def test_a_value_outside_of_its_limits_is_named_with_its_key(toy, message):
    assert complaint(toy) == message


def test_a_choice_that_is_gone_says_what_to_write_now():
    message = "colour.name='crimson' no longer exists; write colour.name=red with colour.strength=2 instead"
    assert complaint(Toy(Colour("crimson"))) == message


def test_rules_of_a_group_checked_alone_are_told_under_its_prefix():
    assert complaint(Toy(low=2), "TOY.") == "TOY.low=2 must be below high=2"


def test_a_group_without_rules_of_its_own_has_none():
    assert Colour().rules() == []


def test_nested_settings_become_dotted_keys():
    assert flat({"a": 1, "b": {"c": [2], "d": {"e": 3}}}) == {"a": 1, "b.c": [2], "b.d.e": 3}
