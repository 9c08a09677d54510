"""A finished run that is not what it was: refused by the name of the file, and its code never run."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.answers import assert_refused
from tests.hostile.test_inputs import DEEP

ADAPTER = "adapter_model.safetensors"
RUN = ("--gpu", "cpu", "--set", "max_steps=1", "--set", "max_new_tokens=2")


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended well, and another run's beside it."""
    from autoft.cli.main import main

    folder = tmp_path_factory.mktemp("finished")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"n {n}", "completion": f"yes {n}"}) + "\n" for n in range(30)))
    umask = os.umask(0o027)
    try:
        for name, more in (("run", ()), ("other", ("--set", "seed=7", "--set", "learning_rate=0.01"))):
            with pytest.raises(SystemExit) as stopped:
                main(["run", str(tiny_model), "--data", str(data), *RUN, *more, "-o", str(folder / name)])
            assert not stopped.value.code
    finally:
        os.umask(umask)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


def flip(run: Path) -> None:
    content = bytearray((run / ADAPTER).read_bytes())
    content[-9] ^= 1
    (run / ADAPTER).write_bytes(content)


def rename_keys(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({f"x.{name}": tensor for name, tensor in load_file(run / ADAPTER).items()}, run / ADAPTER)


def drop_a_tensor(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file(dict(sorted(load_file(run / ADAPTER).items())[1:]), run / ADAPTER)


def change_alpha(run: Path) -> None:
    config = json.loads((run / "adapter_config.json").read_text())
    (run / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1}))


def change_base(run: Path) -> None:
    """Another base of the same shape: a fine-tune of it, say."""
    from safetensors.torch import load_file, save_file

    places = json.loads((run / "local.json").read_text())
    base = Path(shutil.copytree(places["base"], run.parent / "base"))
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})
    (run / "local.json").write_text(json.dumps({**places, "base": str(base)}))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit flipped": (flip, ADAPTER),
    "other keys": (rename_keys, ADAPTER),
    "a tensor missing": (drop_a_tensor, ADAPTER),
    "adapter gone": (lambda run: (run / ADAPTER).unlink(), ADAPTER),
    "adapter a pickle": (lambda run: (run / ADAPTER).rename(run / "adapter_model.bin"), ADAPTER),
    "another base": (change_base, "not the weights that"),
    "alpha changed": (change_alpha, "adapter_config.json"),
    "adapter_config cut": (lambda run: (run / "adapter_config.json").write_text("{"), "adapter_config.json"),
    "tokenizer gone": (lambda run: (run / "tokenizer.json").unlink(), "tokenizer.json"),
    "result cut": (lambda run: (run / "result.json").write_text('{"schema'), "result.json"),
    "result a list": (lambda run: (run / "result.json").write_text("[]"), "result.json"),
    "result empty": (lambda run: (run / "result.json").write_text(""), "result.json"),
    "result of another tool": (lambda run: (run / "result.json").write_text('{"accuracy": 1}'), "result.json"),
    "result deep": (lambda run: (run / "result.json").write_text("[" * DEEP), "result.json"),
    "result of digits": (lambda run: (run / "result.json").write_text('{"a": ' + "9" * 5000 + "}"), "result.json"),
    "result not UTF-8": (lambda run: (run / "result.json").write_bytes(b"\xff{"), "result.json"),
}


@pytest.mark.parametrize("command", [("chat", "-p", "hello"), ("eval",)], ids=["chat", "eval"])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_run_that_is_not_what_it_was_is_not_opened(autoft, run: Path, name: str, command: tuple[str, ...]) -> None:
    damage, word = DAMAGE[name]
    damage(run)
    assert_refused(autoft(command[0], run, *command[1:]), word)


def test_the_adapter_of_another_run_is_not_opened(autoft, finished: Path, run: Path) -> None:
    shutil.copy(finished / "other" / ADAPTER, run / ADAPTER)
    assert_refused(autoft("chat", run, "-p", "hello"), f"{ADAPTER}: not the file that the run wrote")
    done = autoft("chat", run, "-p", "hello", "--accept-changes", "--max-new-tokens", "2")
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", ["other keys", "a tensor missing", "adapter_config cut", "adapter gone"])
def test_what_cannot_be_opened_is_refused_though_changes_are_accepted(autoft, run: Path, name: str) -> None:
    damage, word = DAMAGE[name]
    damage(run)
    assert_refused(autoft("chat", run, "-p", "hello", "--accept-changes"), word if name != "adapter_config cut" else "")


EVIL = 'open("THE-CODE-WAS-RUN", "w").close()\nfrom transformers import PreTrainedTokenizerFast as EvilTok\n'


@pytest.mark.parametrize("accepted", [(), ("--accept-changes",)], ids=["", "accepted"])
@pytest.mark.parametrize("command", [("chat", "-p", "hello"), ("eval",)], ids=["chat", "eval"])
def test_code_in_the_folder_of_a_run_is_never_run_nor_asked_about(
    autoft, run: Path, tmp_path: Path, monkeypatch, command: tuple[str, ...], accepted: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (run / "evil.py").write_text(EVIL)
    config = json.loads((run / "tokenizer_config.json").read_text())
    auto_map = {"AutoTokenizer": ["evil.EvilTok", "evil.EvilTok"]}
    (run / "tokenizer_config.json").write_text(
        json.dumps({**config, "tokenizer_class": "EvilTok", "auto_map": auto_map})
    )
    done = autoft(command[0], run, *command[1:], *accepted)
    assert_refused(done)
    assert "[y/N]" not in done.out + done.err
    assert not list(tmp_path.rglob("THE-CODE-WAS-RUN"))


def test_people_may_write_into_the_card(autoft, run: Path) -> None:
    (run / "README.md").write_text("# mine\n")
    assert autoft("chat", run, "-p", "hello", "--max-new-tokens", "2").code == 0


def test_all_files_have_the_permissions_of_new_files(finished: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (finished / "run").iterdir() if path.is_file()}
    assert set(modes.values()) == {0o640}, modes
