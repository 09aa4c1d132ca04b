"""Recipes by name.

- every base, with every set of parts in any order, has one usual name that stands for the same recipe
- an unknown base or part, a part twice, a number that does nothing: refused with the choices
- the config refuses what the recipe does, naming the field, and keeps the usual name
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megpt.config import load_config
from megpt.errors import InputError
from megpt.recipe import BASES, Recipe, parse_recipe


@pytest.mark.parametrize("base", BASES)
def test_one_usual_name(base: str) -> None:
    parts = ["dotsplit", "unk3", "59"] + (["ptb"] if base != "ptb" else [])
    for length in range(len(parts) + 1):
        for chosen in itertools.permutations(parts, length):
            recipe = parse_recipe("+".join([base, *chosen]))
            assert parse_recipe(str(recipe)) == recipe == parse_recipe("+".join([base, *sorted(chosen)]))
            assert recipe.unk == (3 if "unk3" in chosen else None) and recipe.cut == (59 if "59" in chosen else None)
            assert recipe.dotsplit == ("dotsplit" in chosen) and recipe.ptb == ("ptb" in chosen or base == "ptb")


def test_names() -> None:
    assert str(parse_recipe("r2gen-iu+59+unk3")) == "r2gen-iu+unk3+59"
    assert str(parse_recipe("ptb")) == str(parse_recipe("none+ptb")) == "ptb"
    assert str(parse_recipe("r2gen-mimic+unk10+100")) == "r2gen-mimic+unk10+100"
    assert parse_recipe("none").to_the_letter and not parse_recipe("none+59").to_the_letter
    assert parse_recipe("r2gen-iu+dotsplit").scoring_only is None and Recipe().scoring_only is None


@pytest.mark.parametrize(
    "name, what, then",
    [
        ("r2gen", "unknown cleaner 'r2gen'", "did you mean r2gen-"),
        ("R2gen-iu", "unknown cleaner 'R2gen-iu'", "r2gen-iu"),
        ("", "unknown cleaner ''", "ptb"),
        ("r2gen-ui+unk3", "unknown cleaner 'r2gen-ui' in 'r2gen-ui+unk3'", "did you mean r2gen-iu"),
        ("none+unk", "unknown part 'unk' of the cleaner 'none+unk'", "unkN (words seen fewer than N times"),
        ("none+", "unknown part ''", "dotsplit"),
        ("none+dots", "unknown part 'dots'", "dotsplit"),
        ("none+-3", "unknown part '-3'", "dotsplit"),
        ("none+٣", "unknown part '٣'", "dotsplit"),
        ("none+59+60", "sets cut twice", "name each part once"),
        ("ptb+ptb", "sets ptb twice", "name each part once"),
        ("none+unk1", "does nothing", "2 or more"),
        ("none+0", "does nothing", "1 or more"),
    ],
)
def test_refused(name: str, what: str, then: str) -> None:
    with pytest.raises(InputError) as error:
        parse_recipe(name)
    assert what in error.value.what and then in str(error.value.next)


@given(st.text(alphabet="nober2gn-iu+unk0123456789dotsplitptb", max_size=30))
def test_any_text_is_a_recipe_or_refused(name: str) -> None:
    try:
        recipe = parse_recipe(name)
    except InputError as error:
        assert error.next
    else:
        assert parse_recipe(str(recipe)) == recipe


def test_the_config_names_the_field() -> None:
    assert load_config(None, ["data.cleaner=r2gen-iu+59+unk3"]).data.cleaner == "r2gen-iu+unk3+59"
    with pytest.raises(InputError, match=r"data\.cleaner = 'r2gen-iu\+uk3': unknown part 'uk3' .*known parts: unkN"):
        load_config(None, ["data.cleaner=r2gen-iu+uk3"])
