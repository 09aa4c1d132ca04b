"""What a job's result depends on, and what the command line named.

- A setting belongs to the identity of a job that reads it unless its declaration marks it; exactly the settings listed
  here are marked, so a new mark, or a lost one, needs a change here.
- A change of an unmarked setting changes the identity of a job that reads its section; that of a marked one does not.
- Each setting is read by some job, and each unmarked one is in the identity of each job that reads it.
- `identity` takes sections, dotted and top-level keys, gives plain JSON, and refuses a name that no setting has.
- A mark inside a union has no effect: the setting stays in the identity.
- `named` holds what the command line named, in order, the last mention of each; copies keep it, equality ignores it.
- Of two inputs the one named last is used: on the line, else in the later file, else in the job's own order.
- A setting named on the command line that the job does not read is refused, with the jobs that read it.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Annotated, Any

import pytest

from megpt.config import KNOWN_KEYS, Config, Fingerprinted, Indifferent, Positive, load_config, refuse_unread
from megpt.config.run import SETTINGS
from megpt.errors import InputError
from megpt.settings import Leaf, Section, covers, leaves
from ray_jobs.docs import job_reads

INDIFFERENT = {
    *("output", "ids", "retry", "data.changed"),
    *(
        "cluster.num_workers",
        "cluster.gpus_per_worker",
        "cluster.cpus_per_worker",
        "cluster.wait_s",
        "cluster.hang_s",
        "cluster.ray",
        "cluster.on_bad_node",
    ),
    *("prepare.max_failed_fraction", "prepare.fail_fast", "prepare.max_failed_films_fraction"),
    *("train.zero_stage", "train.deepspeed", "train.micro_batch_size", "train.loss_chunk"),
    *(
        "train.activation_checkpointing",
        "train.cache_features",
        "train.cache_folder",
        "train.save_every",
        "train.keep",
        "train.log_every",
    ),
    *("train.loader_workers", "train.max_failures", "train.max_failed_fraction", "train.timeout_s", "train.loggers"),
    *("generate.slots", "generate.decode_workers", "generate.max_failed_fraction", "generate.fail_fast"),
    *("evaluate.dataset", "data.options", "options"),
    *("serve.host", "serve.port", "serve.max_request_mb", "serve.max_films", "serve.max_in_flight"),
    "serve.max_per_minute",
}
FINGERPRINTED = {"source", "studies", "prompts", "checkpoint", "predictions", "references", "training"}
EVERYTHING = sorted({key.partition(".")[0] for key in KNOWN_KEYS})
# Settings for which a value made from the type alone is out of range, or breaks a rule with another setting.
ANOTHER = {
    **dict.fromkeys(("model.findings_threshold", "generate.findings_threshold"), 0.4),
    "data.cleaner": "r2gen-iu",
    "data.encoding": "cp1252",
    "data.delimiter": ";",
    "data.roots": ["/another"],
    "prepare.jpeg_quality": 96,
    "model.vision_args": {"depths": [2]},
    "model.extra_modules": ["another"],
    "data.modalities": ["CR"],
    "model.context": ["indication"],
    "fit_prompts.candidates": [2],
    "train.betas": [0.8, 0.9],
    "train.loggers": [],
    "generate.do_sample": {"do_sample": True, "num_beams": 1},
    "data.options": {"another": 1},
    "options": {"another": {"key": 1}},
    "evaluate.scores": ["another"],
    "export.dtype": "bf16",
    "export.max_shard_size": "1MB",
    "ablate.variants": {"no_fem": {"model.fem": False}},
    "ablate.grid": {"train.lr": [1.0]},
    "ablate.seeds": [1],
}


def another(leaf: Leaf) -> Any:
    """A valid value of the setting that is not its default."""
    if leaf.key in ANOTHER:
        return ANOTHER[leaf.key]
    choices = leaf.schema.get("enum") or [kind["const"] for kind in leaf.schema.get("anyOf", ()) if "const" in kind]
    if choices:
        return next(choice for choice in choices if choice != leaf.default)
    if isinstance(leaf.default, bool):
        return not leaf.default
    if leaf.is_text:
        return "another"
    if leaf.default is None:
        return 7
    return leaf.default / 2 or 0.5 if "number" in leaf.type else leaf.default + 1


def changed(leaf: Leaf) -> Config:
    value = another(leaf)
    key = "generate" if leaf.key == "generate.do_sample" else leaf.key
    return Config().overridden({key: value})


def holds(tree: dict[str, Any], key: str) -> bool:
    for name in key.split("."):
        if name not in tree:
            return False
        tree = tree[name]
    return True


def test_exactly_these_settings_are_marked() -> None:
    assert {leaf.key for leaf in SETTINGS if Indifferent in leaf.marks} == INDIFFERENT
    assert {leaf.key for leaf in SETTINGS if Fingerprinted in leaf.marks} == FINGERPRINTED
    assert {leaf.key for leaf in SETTINGS if not leaf.in_identity} == INDIFFERENT | FINGERPRINTED


@pytest.mark.parametrize("leaf", SETTINGS, ids=lambda leaf: leaf.key)
def test_a_change_of_a_setting_changes_the_identity_unless_it_is_marked(leaf: Leaf) -> None:
    before, after = Config().identity(*EVERYTHING), changed(leaf).identity(*EVERYTHING)
    assert changed(leaf) != Config()
    assert (before != after) == (leaf.key not in INDIFFERENT | FINGERPRINTED)
    json.dumps(after, allow_nan=False)


def test_every_setting_is_read_and_in_the_identity_of_its_readers() -> None:
    jobs = job_reads()
    for leaf in SETTINGS:
        readers = [job for job, reads in jobs.items() if any(covers(name, leaf.key) for name in reads)]
        # A job from another package reads those of its own.
        assert readers or leaf.key == "options", f"no job reads {leaf.key}"
        for job in readers:
            assert holds(Config().identity(*jobs[job]), leaf.key) == leaf.in_identity, (job, leaf.key)


def test_identity_takes_sections_and_keys() -> None:
    config = load_config(None, ["data.section=findings", "limit=3", "cluster.num_workers=4", "output=x"])
    assert config.identity(
        "evaluate.columns", "phantom", "data.section", "data.max_views", "seed", "limit", "output"
    ) == {
        "evaluate": {"columns": {"id": None, "text": None, "truth": None}},
        "phantom": {"num_studies": 5000, "image_size": 128, "broken": 12},
        "data": {"section": "findings", "max_views": None},
        "seed": 42,
        "limit": 3,
    }
    assert config.identity() == {}
    assert config.identity("data.section", "data") == config.identity("data")


@pytest.mark.parametrize("name", ["evaluat", "data.sectio", "data.section.x", "", "model.", "."])
def test_identity_of_a_name_that_no_setting_has(name: str) -> None:
    with pytest.raises(ValueError, match="no section or setting"):
        Config().identity("seed", name)


def test_a_mark_inside_a_union_has_no_effect() -> None:
    class Marked(Section):
        outside: Annotated[Positive | None, Indifferent] = None
        inside: Annotated[Positive, Indifferent] | None = None

    assert {leaf.key: leaf.in_identity for leaf in leaves(Marked)} == {"outside": False, "inside": True}


def test_what_the_line_named(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("prompts: p\ntrain: {lr: 1}\n")
    line = ["seed=1", "train={epochs: 2, lr: 3}", "model.vision_args.depths=[1]", "seed=2", "output=x"]
    config = load_config(file, line)
    assert config.named == ("train.epochs", "train.lr", "model.vision_args", "seed", "output")
    assert config.seed == 2
    assert config.updated(limit=3).overridden({"model.fem": False}).named == config.named
    assert pickle.loads(pickle.dumps(config)).named == config.named
    assert load_config(None, ["seed=3"]) == Config(seed=3)
    assert Config().named == ()


@pytest.mark.parametrize(
    ("files", "line", "chosen"),
    [
        ([{"source": "s", "studies": "t"}], [], ("source", "s")),
        ([{"studies": "t", "source": "s"}], [], ("source", "s")),
        ([{"source": "s"}], ["studies=t"], ("studies", "t")),
        ([{"source": "s", "studies": "t"}], ["studies=t"], ("studies", "t")),
        ([{"source": "s"}], ["studies=t", "source=u"], ("source", "u")),
        ([{"source": "s"}], ["source=u", "studies=t"], ("studies", "t")),
        ([{"source": "s"}, {"studies": "t"}], [], ("studies", "t")),
        ([{"studies": "t"}, {"source": "s"}], [], ("source", "s")),
        ([{"source": "s", "studies": "t"}], ["source="], ("studies", "t")),
        ([{"source": "s", "studies": "t"}], ["studies="], ("source", "s")),
        ([], ["studies=t"], ("studies", "t")),
    ],
)
def test_the_input_named_last_is_used(
    tmp_path: Path, files: list[dict[str, str]], line: list[str], chosen: Any
) -> None:
    paths = []
    for number, tree in enumerate(files):
        paths.append(tmp_path / f"{number}.yaml")
        paths[-1].write_text(json.dumps(tree))
    config = load_config(paths, line)
    assert config.input_of("source", "studies") == chosen
    assert config.updated(output="x").input_of("source", "studies") == chosen
    one = config.with_one_input("source", "studies")
    assert {"source": one.source, "studies": one.studies} == {"source": None, "studies": None} | {chosen[0]: chosen[1]}


def test_no_input_at_all() -> None:
    with pytest.raises(InputError) as caught:
        Config().input_of("source", "studies")
    assert str(caught.value) == (
        "none of `source`, `studies` is set\n"
        "  cause: this job needs one of them: "
        "`source`, Archive of films: a folder, a manifest, or a studies/ table; like all inputs a path or an address; "
        "`studies`, Output of `prepare`\n"
        "  next:  add source=PATH to the command, or `source: PATH` to the config"
    )


READERS = {"prepare": ("source", "prepare"), "train": ("prompts", "model"), "generate": ("generate", "seed")}


def unread(*line: str, readers: dict[str, Any] | None = READERS) -> str | None:
    try:
        refuse_unread("generate", READERS["generate"], load_config("phantom", line).named, readers)
    except InputError as error:
        return str(error)
    return None


def test_a_setting_that_the_job_does_not_read_is_refused() -> None:
    assert unread("prompts=x") == (
        "generate does not read prompts\n"
        "  where: the command line\n"
        "  cause: prompts is read by train\n"
        "  next:  run it without prompts=…; megpt generate --help lists what it reads"
    )
    assert unread("model.llm=x", "seed=1", "evaluate={films: 3}") == (
        "generate does not read model.llm or evaluate.films\n"
        "  where: the command line\n"
        "  cause: model.llm is read by train; no job reads evaluate.films\n"
        "  next:  run it without model.llm=… evaluate.films=…; megpt generate --help lists what it reads"
    )
    assert "cause: it would change nothing" in str(unread("model.llm=x", readers=None))


def test_settings_that_are_read_and_those_of_a_file_are_not_refused() -> None:
    assert unread() is None  # the file names settings of all jobs
    assert unread("seed=1", "generate.num_beams=2", "generate={slots: 3}") is None


def test_a_job_that_reads_what_does_not_exist_is_an_error_of_the_job() -> None:
    with pytest.raises(ValueError, match="no section or setting 'generat'"):
        refuse_unread("generate", ("generat",), ())
