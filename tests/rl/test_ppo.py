"""Advantages by hand, the loss against finite differences, and the first step of an update."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.errors import ConfigError, ModelError, NonFiniteError
from archgrad.rl.ppo import PUBLISHED, SMALL, Agent, PpoTerms, learn, loss_of, optimizer_of
from archgrad.rl.rollouts import Collector, Rollout, Scale, advantages
from archgrad.supernets.darts_loop import relax_as_mixture

pytest.importorskip("gymnasium", reason="comes with the extra rl")

from archgrad.rl.pixel_game import Gems

GAME = functools.partial(Gems, size=5, gems=2, traps=1, blocks=0, longest=6)
TINY = PpoTerms(rollout=8, minibatch=16, passes=2)


def space(norm: str = "none") -> nn.Module:
    torch.manual_seed(0)
    made = ag.impala_cells(size=5, depths=(4,), nodes=2, features=12, norm=norm)
    relax_as_mixture(made)
    return made


def agent_of(encoder: nn.Module) -> Agent:
    agent = Agent(encoder, example=torch.zeros(1, 3, 5, 5), actions=4)
    nn.init.normal_(agent.policy.weight, std=0.5)
    return agent


def played(agent: Agent, *, envs: int = 4) -> Rollout:
    task = ag.Reinforcement(GAME, envs=envs)
    collector = Collector(
        task.players(seed=0), steps=8, discount=0.9, trace=0.8, generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
    )  # fmt: skip
    return collector(agent)[0]


def found(ended: list[int], over: list[int] | None = None, *, trace: float) -> list[float]:
    rewards, values, following = (
        torch.tensor([[a], [b], [c]]) for a, b, c in ((1.0, 0, 2), (0.5, 1, -1), (1, -1, 3.0))
    )
    flags = (torch.tensor(part, dtype=torch.bool)[:, None] for part in (ended, over or ended))
    stop, end = flags
    return advantages(
        rewards, values, following, ended=stop, over=end, discount=0.5, trace=trace
    ).flatten().tolist()  # fmt: skip


def test_advantages_by_hand() -> None:
    # Errors: 1 + .5 * 1 - .5 = 1;  0 + .5 * -1 - 1 = -1.5;  2 + .5 * 3 + 1 = 4.5
    assert found([0, 0, 0], trace=0.0) == pytest.approx([1.0, -1.5, 4.5])
    # A_2 = 4.5;  A_1 = -1.5 + .25 * 4.5 = -.375;  A_0 = 1 - .25 * .375
    assert found([0, 0, 0], trace=0.5) == pytest.approx([0.90625, -0.375, 4.5])
    # The whole return less the value: 1 + .5 * (0 + .5 * (2 + .5 * 3)) - .5
    assert found([0, 0, 0], trace=1.0)[0] == pytest.approx(1 + 0.25 * 3.5 - 0.5)


def test_an_end_takes_what_follows_away_and_a_cut_keeps_the_value() -> None:
    assert found([0, 1, 0], trace=0.5) == pytest.approx([1 - 0.25 * 1.0, -1.0, 4.5])
    assert found([0, 0, 0], [0, 1, 0], trace=0.5) == pytest.approx([1 - 0.25 * 1.5, -1.5, 4.5])


def test_the_scale_is_the_deviation_of_discounted_returns() -> None:
    scale, generator = Scale(3, 0.9), torch.Generator().manual_seed(0)
    rewards = torch.randn(50, 3, generator=generator)
    running, seen = torch.zeros(3, dtype=torch.float64), []
    for row in rewards:
        scaled = scale(row, torch.zeros(3, dtype=torch.bool))
        running = 0.9 * running + row.double()
        seen.append(running)
    deviation = float(torch.cat(seen).std(correction=0))
    assert torch.allclose(scaled, rewards[-1] / deviation, atol=1e-5)
    scale(rewards[0], torch.tensor([True, False, False]))
    assert scale.returns[0] == 0.0 and scale.returns[1] != 0.0


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_before_the_first_step_the_ratio_is_one(norm: str) -> None:
    agent = agent_of(space(norm)).eval()
    rollout = played(agent)
    loss, figures = loss_of(agent, rollout, dataclasses.replace(SMALL, value=0.0, bonus=0.0))
    assert float(figures["ratio_off_by"]) < 1e-5 and float(figures["clipped"]) == 0.0
    assert float(loss.detach()) == pytest.approx(-float(rollout.advantages.mean()), abs=1e-5)
    if norm == "batch":
        agent.train()
        assert float(loss_of(agent, rollout, SMALL)[1]["ratio_off_by"]) > 1e-3, "other statistics than it played by"


def test_in_double_the_ratio_is_one_to_the_last_bits() -> None:
    agent = agent_of(space()).double().eval()
    rollout = played(agent_of(space()))
    with torch.no_grad():
        images = rollout.images.double() / 255
        scores, values = agent(images)
        log_probs = scores.log_softmax(-1).gather(1, rollout.actions[:, None]).squeeze(1)
    exact = dataclasses.replace(rollout, images=images, log_probs=log_probs, values=values)
    assert float(loss_of(agent, exact, SMALL)[1]["ratio_off_by"]) < 1e-14


def test_the_gradient_of_logits_and_weights_is_that_of_finite_differences() -> None:
    agent = agent_of(space()).double().eval()
    for p in ag.logits(agent):
        nn.init.normal_(p, std=0.3)
    rollout = played(agent_of(space()))
    moved = dataclasses.replace(
        rollout, images=rollout.images.double() / 255, log_probs=rollout.log_probs.double() + 0.05,
        values=rollout.values.double() + 0.1, advantages=rollout.advantages.double(),
        targets=rollout.targets.double(),
    )  # fmt: skip

    def loss() -> Tensor:
        return loss_of(agent, moved, SMALL)[0]

    parameters = [*ag.logits(agent), agent.value.bias, agent.policy.bias]
    gradients = torch.autograd.grad(loss(), parameters)
    assert all(float(g.abs().max()) > 1e-7 for g in gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for i in range(parameter.numel()):
            with torch.no_grad():
                flat, eps = parameter.view(-1), 1e-6
                flat[i] += eps
                above = float(loss())
                flat[i] -= 2 * eps
                below = float(loss())
                flat[i] += eps
            assert (above - below) / (2 * eps) == pytest.approx(float(gradient.view(-1)[i]), abs=1e-8, rel=1e-5)


def test_clipping_stops_the_gradient_where_it_should() -> None:
    agent = agent_of(space()).eval()
    rollout = played(agent)
    terms = dataclasses.replace(SMALL, value=0.0, bonus=0.0)
    for shift, sign, flows in ((1.0, 1, True), (1.0, -1, False), (-1.0, 1, False), (-1.0, -1, True)):
        # A ratio of exp(-shift), and advantages of one sign.
        moved = dataclasses.replace(
            rollout, log_probs=rollout.log_probs + shift, advantages=torch.full_like(rollout.advantages, float(sign))
        )
        loss, figures = loss_of(agent, moved, terms)
        gradient = torch.autograd.grad(loss, agent.policy.bias, allow_unused=True)[0]
        assert float(figures["clipped"]) == 1.0
        assert bool(gradient.abs().max() > 1e-6) is flows


def test_one_adam_with_the_logits_apart_and_no_decay() -> None:
    agent = agent_of(space())
    groups = optimizer_of(agent, SMALL).param_groups
    assert [len(g["params"]) for g in groups] == [len(ag.weights(agent)), len(ag.logits(agent))]
    assert all(g["weight_decay"] == 0 and g["eps"] == 1e-5 and g["lr"] == SMALL.rate for g in groups)
    assert len(optimizer_of(agent_of(nn.Sequential(nn.Flatten(), nn.Linear(75, 4))), SMALL).param_groups) == 1


def test_an_agent_learns_a_game_that_pays_one_action() -> None:
    class Up(Gems):
        def step(self, action: int) -> tuple[object, float, bool, bool, dict[str, object]]:
            seen, _, _, cut, more = super().step(action)
            return seen, float(action == 0), False, cut, more

    task = ag.Reinforcement(functools.partial(Up, size=5, gems=2, traps=0, blocks=0, longest=8), envs=8)
    run = ag.Run(seed=0, device="cpu", progress=False)
    run.begin("test", {})
    agent = Agent(space(), example=task.example, actions=4)
    learn(
        agent,
        task,
        run,
        terms=dataclasses.replace(SMALL, rollout=16, minibatch=64, rate=2e-2),
        rollouts=12,
        phase="p",
    )
    returns = [row["return"] for row in run.history if "return" in row]
    assert returns[0] < 4.0 < 6.0 < returns[-1]
    last = run.history[-1]
    assert last["environment_steps"] == 12 * 16 * 8
    assert 0 < last["gradient_norm_logits"] < last["gradient_norm_weights"]


def test_statistics_of_batch_norm_are_those_of_the_last_rollout() -> None:
    task = ag.Reinforcement(GAME, envs=4)
    run = ag.Run(seed=0, device="cpu", progress=False)
    run.begin("test", {})
    agent = Agent(space("batch"), example=task.example, actions=4)
    learn(agent, task, run, terms=TINY, rollouts=2, phase="p")
    norms = [m for m in agent.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.num_batches_tracked == 2 and not m.training for m in norms)
    assert all(row["ratio_off_by"] < 1e-5 for row in run.history)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    task = ag.Reinforcement(GAME, envs=4)
    run = ag.Run(seed=0, device="cpu", progress=False)
    run.begin("test", {})
    with pytest.raises(NonFiniteError, match="loss became NaN"):
        learn(
            Agent(space(), example=task.example, actions=4), task, run,
            terms=dataclasses.replace(TINY, bonus=float("inf")), rollouts=1, phase="p",
        )  # fmt: skip


@pytest.mark.parametrize(
    "given", [{"rollout": 0}, {"minibatch": 1.5}, {"discount": 1.1}, {"trace": -0.1}, {"rate": True}, {"clip": -1.0}]
)
def test_numbers_out_of_range_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        PpoTerms(**given)


def test_an_encoder_for_other_images_is_refused() -> None:
    with pytest.raises(ModelError, match=r"does not run on images of shape \[3, 9, 9\]"):
        Agent(space(), example=torch.zeros(1, 3, 9, 9), actions=2)
    assert (PUBLISHED.rollout, PUBLISHED.minibatch, PUBLISHED.passes, PUBLISHED.rate) == (1024, 2048, 2, 5e-4)
