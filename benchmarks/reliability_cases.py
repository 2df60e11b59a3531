"""What is killed and begun again: methods, tasks of several kinds, loops of one's own, and files that are written.

Methods and tasks are those of the tests, tiny, with a checkpoint after every step.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import archgrad as ag

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [
    str(TESTS / folder) for folder in ("conformance", "methods", "gates", "control", "rl", "integrations", ".")
]

Case = Callable[[Path], object]
METHODS = (
    "dnal", "slim_front", "pruning_transfer", "unas", "darts", "darts_prime", "toponas", "radars, bound", "monas",
    "random_search", "random_search, shared", "multimodal_random",
)  # fmt: skip
OUTPUT = ag.Output(checkpoint_seconds=0.0)


def cases() -> dict[str, Case]:
    """Every method on what the tests try it on, tasks of several kinds, a loop of one's own, and exports."""
    import test_freenas
    import test_methods
    import test_nnilqr
    import test_rl_darts
    import test_tasks
    from planted import limit

    def planted(name: str, folder: Path) -> None:
        run = test_methods.quiet(name, epochs=6, folder=folder, output=OUTPUT)
        test_methods.found_by(name, run, limit=limit())

    def on_task(kind: str, name: str, folder: Path) -> None:
        task = {**test_tasks.KINDS, **test_tasks.MORE_KINDS}[kind]()
        outputs = {"classification": 2, **dict.fromkeys(test_tasks.MORE_KINDS, 8)}.get(kind, 1)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            found = test_tasks.METHODS[name][0](
                test_tasks.space(name, outputs=outputs), task, test_tasks.quiet(folder=folder, output=OUTPUT)
            )
        if name == "slim_front":
            found.save(folder)

    found: dict[str, Case] = {name: functools.partial(planted, name) for name in METHODS}
    quiet = {"device": "cpu", "progress": False}
    found["freenas"] = lambda folder: ag.freenas(
        test_freenas.nasbench(), ag.Run(seed=3, folder=folder, **quiet), example=test_freenas.X, seeds=2
    )
    found["nnilqr"] = lambda folder: ag.nnilqr(
        None, test_nnilqr.pendulum(), test_nnilqr.quiet(folder=folder, output=OUTPUT), terms=test_nnilqr.SHORT
    )
    found["rl_darts"] = lambda folder: test_rl_darts.found_by(test_rl_darts.quiet(folder=folder, output=OUTPUT))
    for kind, name in (
        ("regression", "dnal"), ("negative scores", "slim_front"), ("masks, inputs by name", "dnal"),
        ("several labels, distilled", "dnal"), ("masks, inputs by name", "darts"), ("regression", "monas"),
        ("several labels, distilled", "unas"), ("negative scores", "random_search"),
    ):  # fmt: skip
        found[f"{name}: {kind}"] = functools.partial(on_task, kind, name)
    place()  # once, before processes are forked
    found |= {"a loop of one's own": own_loop, "an export": exported, "random_search, halving": control}
    found |= {"a loop without a run": plain_loop, "a loop of Lightning": lightning_loop, "slim, then resume": resumed}
    return found | {name: functools.partial(written, name) for name in FILES}


def own_loop(folder: Path) -> None:
    """Gates trained in a loop of one's own, its state kept by a `Run`."""
    import test_gate_trainer
    from safetensors.torch import save_file

    space, limit = test_gate_trainer.planted()
    optimizer = torch.optim.SGD(ag.weights(space), lr=0.05)
    trainer = ag.GateTrainer(space, limit=limit, steps=60)
    run = ag.Run(folder=folder, device="cpu", progress=False, output=OUTPUT)
    run.begin("own loop", {}, network=space)
    run.register_state(space=space, optimizer=optimizer, gates=trainer)
    for step in run.steps(60):
        test_gate_trainer.train(trainer, space, optimizer, range(step, step + 1))
    network = trainer.cut()
    run.finish()
    save_file(network.state_dict(), folder / "partial")
    (folder / "partial").replace(folder / "network.safetensors")


def plain_loop(folder: Path) -> None:
    """The loop of docs/own-loop.md, which saves its parts itself after each step."""
    import test_gate_trainer
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    space, limit = test_gate_trainer.planted()
    optimizer = torch.optim.SGD(ag.weights(space), lr=0.05)
    trainer, first = ag.GateTrainer(space, limit=limit, steps=60), 0
    parts = {"space": space, "optimizer": optimizer, "gates": trainer}
    if (path := folder / "state.pt").exists():
        saved = torch.load(path)
        first = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for step in range(first, 60):
        test_gate_trainer.train(trainer, space, optimizer, range(step, step + 1))
        torch.save({"step": step + 1, **{n: part.state_dict() for n, part in parts.items()}}, folder / "partial")
        (folder / "partial").replace(path)
    save_file(trainer.cut().state_dict(), folder / "partial")
    (folder / "partial").replace(folder / "network.safetensors")


def lightning_loop(folder: Path) -> None:
    """The loop of Lightning, which goes on from its own checkpoints."""
    from families.timm_shim import make_torchvision_importable

    make_torchvision_importable()
    import test_lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from safetensors.torch import save_file

    module, gates = test_lightning.parts()
    kept = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    # Lightning writes in place: of the files that it left, the newest but one is whole.
    left = sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))[:-1]
    training = test_lightning.trainer(gates, kept, enable_checkpointing=True)
    training.fit(module, test_lightning.loader(), ckpt_path=left[-1] if left else None)
    network = gates.cut(inputs=[x for x, _ in test_lightning.loader()])
    save_file(network.state_dict(), folder / "partial")
    (folder / "partial").replace(folder / "network.safetensors")


def control(folder: Path) -> None:
    """Random search whose trials are halved."""
    import test_tasks

    run = test_tasks.quiet(folder=folder, output=OUTPUT)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        space = test_tasks.space("random_search", outputs=1)
    test_tasks.METHODS["random_search, halving"][0](space, test_tasks.KINDS["regression"](), run)


@functools.cache
def place() -> Path:
    """A folder with the material of commands, among it one finished run."""
    from reliability_inputs import material

    folder = Path(tempfile.mkdtemp())
    with contextlib.chdir(folder):
        material(folder)
    return folder


def told(*arguments: str | Path) -> None:
    """A command that ends well."""
    from reliability_inputs import command

    status, output, raised = command(*arguments)
    if status or raised is not None:
        raise RuntimeError(f"{arguments} ended with {status}: {output}") from raised


def resumed(folder: Path) -> None:
    """`archgrad slim`, gone on with by `archgrad resume`."""
    with contextlib.chdir(place()):
        # What ends it before that is begun again by the same command.
        begun = (folder / "run.json").exists() and (folder / "command.json").exists()
        given = ["slim", "net.py:Net", "data.npz", "--limit", "macs=0.5", "--steps", "24", "--batch-size", "18",
                 "--threads", "1", "--no-onnx", "--out", folder]  # fmt: skip
        told(*(["resume", folder] if begun else given))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)).eval()


def whole_onnx(path: Path) -> None:
    import onnx

    onnx.checker.check_model(onnx.load(str(path)))


def packaged(folder: Path) -> None:
    """The package of a finished run, whose own vector its own file answers."""
    with contextlib.chdir(place()):
        told("package", "run", "--out", folder / "package")
    subprocess.run([sys.executable, "predict.py", "--test"], cwd=folder / "package", check=True, capture_output=True)


def digits() -> ag.Classification:
    x = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return ag.Classification((x, torch.arange(24) % 3), batch_size=6)


def quantized(path: Path) -> None:
    task = digits()
    found = ag.dnal(ag.slim(network(), task.example), task, ag.Run(steps=4, progress=False))
    found.export(path, task=task, int8=True, max_drop=100.0)


# What writes a file again and again under one name, and what says that the file there is whole.
FILES: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object]]] = {
    "export_program": (
        "network.pt2", lambda path: ag.export_program(network(), torch.zeros(1, 1, 8, 8), path), torch.export.load,
    ),
    "export_int8": (
        "network.int8.onnx", quantized, whole_onnx,
    ),
    "export with preprocessing": (
        "network.onnx", lambda path: ag.export_onnx(network(), torch.zeros(1, 1, 8, 8), path, preprocess=digits()),
        whole_onnx,
    ),
    "package": ("package/model.onnx", lambda path: packaged(path.parent.parent), whole_onnx),
}  # fmt: skip


def written(name: str, folder: Path) -> None:
    """A file of `FILES`: what an earlier process left there is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    file, write, check = FILES[name]
    if (folder / file).exists():
        check(folder / file)
    write(folder / file)


def exported(folder: Path) -> None:
    """A network written again and again under one name: what stands there is always whole."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)).eval()
    if (path := folder / "network.onnx").exists():
        import onnx

        onnx.checker.check_model(onnx.load(str(path)))
    ag.export_onnx(network, torch.zeros(1, 8), path)
