"""One schema for the command line, YAML files and command.json."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError
from torch import nn

from archgrad.cli.run_setup import recipes_of
from archgrad.cli.schemas.configuration import anchored, resolve
from archgrad.cli.schemas.control import ControlOptions
from archgrad.cli.schemas.limits import COSTS, LimitText, parse
from archgrad.cli.schemas.methods import METHODS, SEARCHES, Method, MethodOptions
from archgrad.cli.schemas.options import Options, augmentations, named_space
from archgrad.cli.schemas.search import SearchOptions
from archgrad.cli.schemas.slim import SlimOptions
from archgrad.cli.schemas.task import class_weights, normalization
from archgrad.cli.schemas.train import TrainOptions
from archgrad.cli.schemas.transfer import TransferOptions
from archgrad.errors import ConfigError, LimitError
from archgrad.methods.darts import darts

GIVEN = {"model": "net.py:Net", "data": "digits"}


@pytest.mark.parametrize("schema", [SlimOptions, SearchOptions, TrainOptions, TransferOptions, ControlOptions])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_option_is_infinite(schema: type[Options], number: float) -> None:
    fields = [name for name, field in schema.model_fields.items() if "float" in str(field.annotation)]
    assert fields
    for name in fields:
        with pytest.raises(ValidationError) as refusal:
            schema.model_validate({name: number})
        assert any(error["loc"] == (name,) for error in refusal.value.errors()), name


@pytest.mark.parametrize(
    ("text", "cost", "bound", "fraction"),
    [
        ("macs=0.5", "macs", None, 0.5),
        ("macs=50%", "macs", None, 0.5),
        ("params=1", "params", None, 1.0),
        ("macs=100%", "macs", None, 1.0),
        ("macs=20M", "macs", 20e6, None),
        ("macs=20e6", "macs", 20e6, None),
        ("params=300k", "params", 300e3, None),
        ("params = 1.5K", "params", 1500.0, None),
        ("latency_ms=4.0", "latency_ms", 4.0, None),
        ("onnx_ms=0.5", "onnx_ms", 0.5, None),
        ("executorch_int8_ms=0.5", "executorch_int8_ms", 0.5, None),
        ("onnx_int8_kb=1.5", "onnx_int8_kb", 1.5, None),
    ],
)
def test_limits_are_read(text: str, cost: str, bound: float | None, fraction: float | None) -> None:
    assert parse(text) == LimitText(cost, bound, fraction)


@pytest.mark.parametrize(
    "text",
    [
        "", "macs", "macs=", "macs=x", "macs=0", "macs=-1", "macs=0%", "macs=101%", "macs=1.5", "macs=nan",
        "macs=inf", "macs=1e999", "macs=20 apples", "flops=0.5", "latency_ms=0", "latency_ms=50%", "=0.5",
        "onnx_kb=0", "onnx_kb=50%", "onnx_int8_kb=3k", "0.5", "params=0k", "macs=0.5 macs=0.5",
    ],
)  # fmt: skip
def test_other_limits_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(LimitError, match=r"macs=0\.5|such as (latency_ms=4\.0|onnx_\w*kb=100)|at most 1"):
        parse(text)


@pytest.mark.parametrize("name", COSTS)
def test_a_limit_without_a_value_is_asked_for_one_and_not_for_its_own_name(name: str) -> None:
    with pytest.raises(LimitError, match=f"Give a value too, {name}=") as refused:
        parse(name)
    assert "Did you mean" not in str(refused.value)


@given(st.text("0123456789.eE+-%kMGT xnai", max_size=12))
def test_any_text_is_a_limit_or_refused(value: str) -> None:
    try:
        found = parse(f"macs={value}")
    except LimitError:
        return
    amount = found.fraction if found.bound is None else found.bound
    assert amount is not None and 0 < amount < math.inf


def test_augmentations_are_read() -> None:
    assert augmentations("flip, crop=4,cutout=8") == [("flip", None), ("crop", 4), ("cutout", 8)]
    others = ["rotate", "brightness", "time_mask", "frequency_mask"]
    assert augmentations(",".join(f"{name}=3" for name in others)) == [(name, 3) for name in others]
    assert augmentations("") == []


@pytest.mark.parametrize("text", ["crop", "flip=2", "crop=0", "crop=-1", "mixup=1", "crop=4;flip"])
def test_other_augmentations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"augment=.*flip,crop=4,cutout=8"):
        resolve(SlimOptions, {**GIVEN, "augment": text})


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 7\nbatch-size: 32\nlimit: {macs: 0.25}\nkeep: [conv1]\nsparsity: 2\n")
    options = resolve(SlimOptions, {**GIVEN, "epochs": 3, "keep": [], "seed": None}, file)
    assert (options.epochs, options.batch_size, options.seed, options.sparsity) == (3, 32, 0, 2.0)
    assert (options.limit, options.keep) == (["macs=0.25"], ["conv1"])
    assert resolve(SlimOptions, options.model_dump(mode="json")) == options


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 7", "epoch .*run.yaml.*: unknown option, given 7. Did you mean epochs"),
        ("epochs: 0", r"epochs \(in .*run.yaml\): 0 was given.*greater than or equal to 1"),
        ("epochs: ten", "epochs .*'ten' was given.*integer"),
        ("epochs: 1.5", "1.5 was given"),
        ("seed: true", "True was given"),
        ("seed: -1", "-1 was given"),
        ("limit: macs=2.5", "neither a fraction"),
        ("limit: [1, 2]", "limit"),
        ("keep: conv1", "keep .*'conv1' was given.*list"),
        ("- epochs", "holds a list"),
        ("epochs: [", "is not YAML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        resolve(SlimOptions, GIVEN, file)


def test_a_missing_file_and_a_missing_argument_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read: No such file"):
        resolve(SlimOptions, GIVEN, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="MODEL is missing: package"):
        resolve(SlimOptions, {"data": "digits"})


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"--epochs: -1 was given(.|\n)*--batch-size: 0 was given"):
        resolve(SlimOptions, {**GIVEN, "epochs": -1, "batch_size": 0})


def test_an_architecture_and_its_model_go_together() -> None:
    with pytest.raises(ConfigError, match=r"no \.json file"):
        resolve(TrainOptions, {"network": "net.py:Net", "data": "digits", "model": "net.py:Net"})
    with pytest.raises(ConfigError, match="channels may be given for an architecture that was searched alone"):
        resolve(TrainOptions, {"network": "a.json", "data": "digits", "model": "net.py:Net", "channels": 3})


@pytest.mark.parametrize("text", ["darts", "mobile", "package.net:Space", "net.py:Space", "/a/b:c/net.py:Space"])
def test_spaces_are_known_or_a_model(text: str) -> None:
    assert named_space(text) == text


@pytest.mark.parametrize("text", ["", "Darts", "dart s", "net.py", ":Space", "net.py:", "timm:resnet18"])
def test_other_spaces_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not known.*Allowed are darts, nasbench201, mobile"):
        resolve(SearchOptions, {"data": "digits", "space": text})


def test_paths_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = anchored(SlimOptions(model="net.py:Net", data="pictures/", weights="../w.safetensors"))
    assert here.model == f"{tmp_path / 'net.py'}:Net"
    assert here.data == str(tmp_path / "pictures")
    assert here.weights == str(tmp_path.parent / "w.safetensors")
    named = SlimOptions(model="package.net:Net", data="digits")
    assert anchored(named) == named
    assert anchored(SearchOptions(data="digits", space="net.py:Space")).space == f"{tmp_path / 'net.py'}:Space"
    assert anchored(SearchOptions(data="digits", space="mobile")).space == "mobile"
    assert anchored(TrainOptions(network="a.json", data="digits", model="timm:x")).network == str(tmp_path / "a.json")


def test_data_or_a_task_and_not_both() -> None:
    assert resolve(SlimOptions, {"model": "net.py:Net", "task": "net.py:task"}).data is None
    with pytest.raises(ConfigError, match=r"DATA is missing.*--task path/to/file\.py:function"):
        resolve(SlimOptions, {"model": "net.py:Net"})
    with pytest.raises(ConfigError, match=r"DATA 'digits' and task='net\.py:task' were given. Give one"):
        resolve(SlimOptions, {**GIVEN, "task": "net.py:task"})
    with pytest.raises(ConfigError, match=r"batch_size=32 goes with DATA; the code of task='net\.py:task'"):
        resolve(SlimOptions, {"model": "net.py:Net", "task": "net.py:task", "batch_size": 32})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optimizer": "lion"}, "'lion' was given.*'sgd', 'adam' or 'adamw'"),
        ({"optimizer": "adam", "weight_decay": 0.1}, "weight_decay=0.1 was given, and adam has none"),
        ({"average": 0.9, "best_epoch": True}, "both choose the weights"),
        ({"average": 1.0}, "--average: 1.0 was given"),
        ({"accumulate": 0}, "--accumulate: 0 was given"),
        ({"schedule": "step"}, "--schedule: 'step' was given"),
    ],
)
def test_recipes_that_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(TrainOptions, {"network": "net.py:Net", "data": "digits", **given})


@pytest.mark.parametrize(
    "method", [METHODS[name] for name in SEARCHES if METHODS[name].trains != "nothing"], ids=lambda m: m.name
)
@pytest.mark.parametrize("optimizer", [None, "adamw"])
def test_recipes_reach_every_training_of_a_search(method: Method, optimizer: str | None) -> None:
    given = {"learning_rate": 0.0123, "weight_decay": 0.045, "schedule": "constant", "clip": 3.0, "accumulate": 2}
    options = resolve(SearchOptions, {"data": "digits", "method": method.name, "optimizer": optimizer, **given})
    recipes = recipes_of(options, method.load())
    takes_two = "search_recipe" in inspect.signature(method.load()).parameters
    assert recipes.keys() == ({"recipe", "search_recipe"} if takes_two else {"recipe"})
    for recipe in recipes.values():
        group = recipe.optimizer(nn.Linear(2, 2)).param_groups[0]
        assert (group["lr"], group["weight_decay"]) == (0.0123, 0.045)
        assert (recipe.schedule(0.9), recipe.clip) == (1.0, 3.0)
    assert recipes["recipe"].accumulate == 2
    if takes_two:
        recipes["search_recipe"].check_plain("search_recipe")


def test_a_recipe_that_is_not_given_is_the_methods() -> None:
    recipes = recipes_of(resolve(SearchOptions, {"data": "digits", "method": "darts"}), darts)
    assert recipes["search_recipe"] == inspect.signature(darts).parameters["search_recipe"].default


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_every_row_of_the_table_names_a_function_and_options_of_the_schema(method: Method) -> None:
    assert callable(method.load()) and method.load().__name__ == method.name
    taken = {name for group in method.options for name in group.model_fields}
    assert taken <= set(MethodOptions.model_fields)
    assert bool(method.elsewhere) == (method.name not in SEARCHES)


def test_every_option_of_some_methods_has_an_owner_and_is_refused_for_others() -> None:
    examples = {
        "alpha": 0.5, "memory_gib": 1.0, "shared": True, "trials": 3, "workers": "2", "rounds": 2, "norm": "eval",
        "seeds": 2, "classes": 5, "in_channels": 1, "table": "a.npz", "table_data": "cifar10",
    }  # fmt: skip
    assert set(examples) == set(MethodOptions.model_fields) - set(Options.model_fields)
    for name, value in examples.items():
        owners = [method for method in SEARCHES if METHODS[method].takes(name)]
        assert owners
        for method in set(SEARCHES) - set(owners):
            with pytest.raises(ConfigError, match=f"{name}.* goes with --method {owners[0]}"):
                resolve(SearchOptions, {"data": "digits", "method": method, name: value})


@pytest.mark.parametrize("method", SEARCHES)
def test_every_method_takes_what_all_take(method: str) -> None:
    options = resolve(
        SearchOptions, {"data": "digits", "method": method, "threads": 1, "seed": 3, "limit": "macs=0.5"}
    )
    assert (options.method, options.threads) == (method, 1)


def test_normalization_and_class_weights_are_read() -> None:
    assert [normalization(text) for text in (None, "imagenet", "none")] == [None, "imagenet", "none"]
    assert normalization("0.1,0.2,0.3/1,2,3") == ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0])
    assert (class_weights(None), class_weights("balanced"), class_weights("1,0,2.5")) == (
        None,
        "balanced",
        [1, 0, 2.5],
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        *(
            ("normalize", text, "Allowed are imagenet, none")
            for text in ("", "0.5", "0.5/0", "0.5,1/1", "a/b", "1/nan")
        ),
        *(("class_weight", text, "Allowed are balanced") for text in ("", "1", "1,-1", "1;2", "1,inf", "balance")),
        *(("metric", text, "Allowed are accuracy, top5, loss") for text in ("", "f1", "accurcy")),
        ("metric", "accurcy", "Did you mean accuracy"),
        ("smoothing", 1.0, "smoothing: 1.0 was given"),
    ],
)
def test_options_of_the_loss_and_score_that_are_refused(name: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(SlimOptions, {**GIVEN, name: value})
