"""Any JSON or table gives a value or an error of our own; round trips are exact."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_card import made_card

import reszoo
from reszoo.cards import Card, Metric
from reszoo.data.listing import list_images
from reszoo.files import parse_json
from reszoo.preprocessing import MOST_SIDE, Preprocessing
from reszoo.weights.configs import read_config
from reszoo_export.manifest import read_manifest

quick = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 1e-6, 2e8, 1e308])
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=8)
JSON = st.recursive(
    LEAVES,
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.dictionaries(st.text(max_size=6), inside, max_size=4)
    ),
    max_leaves=8,
)
CARD = made_card(("cat", "dog")).to_json()
TIMM = {
    "architecture": "resnet18",
    "label_names": ["cat", "dog"],
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
}


def places(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways that lead to each value in JSON."""
    found = [above]
    if isinstance(content, dict | list):
        keys = content if isinstance(content, dict) else range(len(content))
        for key in keys:
            found += places(content[key], (*above, key))
    return found


def changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = content.copy()
    copy[place[0]] = changed(content[place[0]], place[1:], value)
    return copy


@quick
@given(st.sampled_from(places(CARD)), JSON)
def test_a_card_with_any_value_in_any_place_is_read_or_refused(
    place: tuple[Any, ...], value: Any
) -> None:
    content = changed(CARD, place, value)
    try:
        card = Card.from_text(json.dumps(content))
    except reszoo.CheckpointError:
        return
    assert Card.from_text(card.to_text()) == card
    assert math.isfinite(sum(card.preprocessing.mean + card.preprocessing.std))


@quick
@given(JSON)
def test_any_json_is_no_card(content: Any) -> None:
    with pytest.raises(reszoo.CheckpointError):
        Card.from_text(json.dumps(content))


@quick
@given(
    st.builds(
        Preprocessing,
        train_size=st.integers(1, MOST_SIDE),
        eval_size=st.integers(1, MOST_SIDE),
        crop_pct=st.floats(0.1, 1),
        interpolation=st.sampled_from(["bilinear", "bicubic"]),
        mean=st.tuples(*[st.floats(-1000, 1000)] * 3),
        std=st.tuples(*[st.floats(1e-4, 1000)] * 3),
    ),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=2),
    st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers(), max_size=3),
)
def test_cards_survive_a_round_trip_exactly(
    preprocessing: Preprocessing, values: list[float], provenance: dict[str, Any]
) -> None:
    metrics = tuple(Metric(name="top1", value=value, data="here") for value in values)
    card = replace(
        made_card(("cat", "dog")),
        preprocessing=preprocessing,
        provenance=provenance,
        metrics=metrics,
    )
    assert Card.from_text(card.to_text()) == card
    assert Card.from_json(parse_json(card.to_text())) == card


@quick
@given(st.sampled_from(places(TIMM)), JSON)
def test_a_timm_config_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "config.json"
    path.write_text(json.dumps(changed(TIMM, place, value)))
    try:
        config = read_config(path)
    except reszoo.CheckpointError:
        return
    record, labels = config.preprocessing, config.labels
    assert record is not None
    assert Preprocessing(**record.to_json()) == record
    assert labels is None or all(isinstance(label, str) for label in labels)


@quick
@given(JSON)
def test_any_json_is_no_manifest(
    tmp_path_factory: pytest.TempPathFactory, content: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "manifest"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(reszoo.ReszooError):
        read_manifest(folder)


@quick
@given(
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass"))
)
def test_any_table_lists_images_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "table.csv"
    path.write_bytes(content)
    try:
        listing = list_images(path)
    except reszoo.ReszooError:
        return
    assert len(listing.labels) >= 2
    assert len(listing.paths) == len(listing.targets)


@quick
@given(
    st.dictionaries(
        st.text(
            st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1
        ),
        st.sampled_from(["cat", "dog", "red, panda"]),
        min_size=6,
        max_size=9,
    )
)
def test_tables_survive_a_round_trip_exactly(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[str, str]
) -> None:
    root = tmp_path_factory.getbasetemp()
    rows = {f"{name.replace('/', '')}.jpg": label for name, label in rows.items()}
    counts = [list(rows.values()).count(label) for label in set(rows.values())]
    quoted = [
        [f'"{x.replace(chr(34), 2 * chr(34))}"' for x in row] for row in rows.items()
    ]
    path = root / "images.csv"
    path.write_text("path,label\n" + "\n".join(map(",".join, quoted)), encoding="utf-8")
    if len(counts) < 2 or min(counts) < 2:
        with pytest.raises(reszoo.DataError):
            list_images(path)
        return
    listing = list_images(path)
    labels = [listing.labels[target] for target in listing.targets]
    names = [str(Path(each).relative_to(root)) for each in listing.paths]
    assert dict(zip(names, labels, strict=True)) == rows


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deep"),
        ("[" * 60 + "]" * 60, "nested deeper than 50"),
        ("[NaN]", "nan is not a finite number"),
        ("[1e999]", "inf is not a finite number"),
        ('{"\\ud800": 1}', "surrogates not allowed"),
        ("9" * 5000, "Exceeds the limit"),
    ],
)
def test_json_that_cannot_be_stored_again_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [math.inf] * 3},
        {"std": [math.nan] * 3},
        {"std": [0.0] * 3},
        {"std": [1e-300] * 3},
        {"mean": [0.5] * 5, "std": [0.5] * 5},
        {"crop_pct": 1e-6},
        {"crop_pct": math.nan},
        {"eval_size": 100_000},
        {"train_size": 10**12},
        {"eval_size": 32.0},
        {"interpolation": ["bilinear"]},
    ],
    ids=str,
)
def test_preprocessing_that_gives_no_pixels_is_refused(changes: Any) -> None:
    content = {**CARD, "preprocessing": {**CARD["preprocessing"], **changes}}
    with pytest.raises(reszoo.CheckpointError, match="card cannot be read"):
        Card.from_json(content)


def test_a_card_cannot_name_more_classes_than_any_data_has() -> None:
    place = ("architecture", "classes")
    content = {**changed(CARD, place, 200_000_000), "labels": None}
    with pytest.raises(reszoo.CheckpointError, match=r"in \[1, 1000000\]"):
        Card.from_json(content)
