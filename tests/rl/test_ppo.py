"""Advantages by hand, the loss against finite differences, and the first step of an update."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import archgrad as ag
from archgrad.errors import ConfigError, ModelError, NonFiniteError
from archgrad.rl.ppo import PUBLISHED, Agent, PpoTerms, agent_optimizer, ppo_loss, train_agent
from archgrad.rl.rollouts import RewardScaling, Rollout, RolloutCollector, generalized_advantages
from archgrad.supernets.darts_loop import relax_as_mixture

pytest.importorskip("gymnasium", reason="comes with the extra rl")

from archgrad.rl.pixel_game import PixelGame

GAME = functools.partial(PixelGame, size=5, gems=2, traps=1, blocks=0, max_steps=6)
TINY = PpoTerms(rollout_steps=8, minibatch_size=16, epochs=2)


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
    task = ag.Reinforcement(GAME, num_envs=envs)
    collector = RolloutCollector(
        task.vector_env(seed=0), steps=8, gamma=0.9, gae_lambda=0.8, generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
    )  # fmt: skip
    return collector.collect(agent)[0]


def found(ended: list[int], over: list[int] | None = None, *, trace: float) -> list[float]:
    rewards, values, following = (
        torch.tensor([[a], [b], [c]]) for a, b, c in ((1.0, 0, 2), (0.5, 1, -1), (1, -1, 3.0))
    )
    flags = (torch.tensor(part, dtype=torch.bool)[:, None] for part in (ended, over or ended))
    stop, end = flags
    return generalized_advantages(
        rewards, values, following, terminated=stop, done=end, gamma=0.5, gae_lambda=trace
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
    scaling, generator = RewardScaling(3, 0.9), torch.Generator().manual_seed(0)
    rewards = torch.randn(50, 3, generator=generator)
    running, seen = torch.zeros(3, dtype=torch.float64), []
    for row in rewards:
        scaled = scaling(row, torch.zeros(3, dtype=torch.bool))
        running = 0.9 * running + row.double()
        seen.append(running)
    deviation = float(torch.cat(seen).std(correction=0))
    assert torch.allclose(scaled, rewards[-1] / deviation, atol=1e-5)
    scaling(rewards[0], torch.tensor([True, False, False]))
    assert scaling.returns[0] == 0.0 and scaling.returns[1] != 0.0


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_before_the_first_step_the_ratio_is_one(norm: str) -> None:
    agent = agent_of(space(norm)).eval()
    rollout = played(agent)
    loss, figures = ppo_loss(agent, rollout, dataclasses.replace(PpoTerms(), value_coef=0.0, entropy_coef=0.0))
    assert float(figures["ratio_off_by"]) < 1e-5 and float(figures["clipped"]) == 0.0
    assert float(loss.detach()) == pytest.approx(-float(rollout.advantages.mean()), abs=1e-5)
    if norm == "batch":
        agent.train()
        assert float(ppo_loss(agent, rollout, PpoTerms())[1]["ratio_off_by"]) > 1e-3, (
            "other statistics than it played by"
        )


def test_in_double_the_ratio_is_one_to_the_last_bits() -> None:
    agent = agent_of(space()).double().eval()
    rollout = played(agent_of(space()))
    with torch.no_grad():
        images = rollout.images.double() / 255
        scores, values = agent(images)
        log_probs = scores.log_softmax(-1).gather(1, rollout.actions[:, None]).squeeze(1)
    exact = dataclasses.replace(rollout, images=images, log_probs=log_probs, values=values)
    assert float(ppo_loss(agent, exact, PpoTerms())[1]["ratio_off_by"]) < 1e-14


def test_the_gradient_of_logits_and_weights_is_that_of_finite_differences() -> None:
    agent = agent_of(space()).double().eval()
    for p in ag.logits(agent):
        nn.init.normal_(p, std=0.3)
    rollout = played(agent_of(space()))
    moved = dataclasses.replace(
        rollout, images=rollout.images.double() / 255, log_probs=rollout.log_probs.double() + 0.05,
        values=rollout.values.double() + 0.1, advantages=rollout.advantages.double(),
        returns=rollout.returns.double(),
    )  # fmt: skip

    def loss() -> Tensor:
        return ppo_loss(agent, moved, PpoTerms())[0]

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
    terms = dataclasses.replace(PpoTerms(), value_coef=0.0, entropy_coef=0.0)
    for shift, sign, flows in ((1.0, 1, True), (1.0, -1, False), (-1.0, 1, False), (-1.0, -1, True)):
        # A ratio of exp(-shift), and advantages of one sign.
        moved = dataclasses.replace(
            rollout, log_probs=rollout.log_probs + shift, advantages=torch.full_like(rollout.advantages, float(sign))
        )
        loss, figures = ppo_loss(agent, moved, terms)
        gradient = torch.autograd.grad(loss, agent.policy.bias, allow_unused=True)[0]
        assert float(figures["clipped"]) == 1.0
        assert bool(gradient.abs().max() > 1e-6) is flows


def test_one_adam_with_the_logits_apart_and_no_decay() -> None:
    agent = agent_of(space())
    groups = agent_optimizer(agent, PpoTerms()).param_groups
    assert [len(g["params"]) for g in groups] == [len(ag.weights(agent)), len(ag.logits(agent))]
    assert all(g["weight_decay"] == 0 and g["eps"] == 1e-5 and g["lr"] == PpoTerms().learning_rate for g in groups)
    assert len(agent_optimizer(agent_of(nn.Sequential(nn.Flatten(), nn.Linear(75, 4))), PpoTerms()).param_groups) == 1


def test_an_agent_learns_a_game_that_pays_one_action() -> None:
    class Up(PixelGame):
        def step(self, action: int) -> tuple[object, float, bool, bool, dict[str, object]]:
            seen, _, _, cut, more = super().step(action)
            return seen, float(action == 0), False, cut, more

    task = ag.Reinforcement(functools.partial(Up, size=5, gems=2, traps=0, blocks=0, max_steps=8), num_envs=8)
    run = ag.Run(seed=0, device="cpu", progress=False)
    run.begin("test", {})
    agent = Agent(space(), example=task.example, actions=4)
    train_agent(
        agent,
        task,
        run,
        terms=dataclasses.replace(PpoTerms(), rollout_steps=16, minibatch_size=64, learning_rate=2e-2),
        rollouts=12,
        phase="p",
    )
    returns = [row["return"] for row in run.history if "return" in row]
    assert returns[0] < 4.0 < 6.0 < returns[-1]
    last = run.history[-1]
    assert last["environment_steps"] == 12 * 16 * 8
    assert 0 < last["gradient_norm_logits"] < last["gradient_norm_weights"]


def test_statistics_of_batch_norm_are_those_of_the_last_rollout() -> None:
    task = ag.Reinforcement(GAME, num_envs=4)
    run = ag.Run(seed=0, device="cpu", progress=False)
    run.begin("test", {})
    agent = Agent(space("batch"), example=task.example, actions=4)
    train_agent(agent, task, run, terms=TINY, rollouts=2, phase="p")
    norms = [m for m in agent.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.num_batches_tracked == 2 and not m.training for m in norms)
    assert all(row["ratio_off_by"] < 1e-5 for row in run.history)


def begun(**settings: object) -> ag.Run:
    run = ag.Run(**{"seed": 0, "device": "cpu", "progress": False, **settings})
    run.begin("test", {})
    return run


def test_the_gradient_of_all_parameters_together_is_clipped() -> None:
    """Weights and logits in one norm: clipped group by group, the whole would have up to sqrt(2) times the norm."""
    task, terms = ag.Reinforcement(GAME, num_envs=4), dataclasses.replace(TINY, max_grad_norm=1e-3)
    agent, stepped = Agent(space(), example=task.example, actions=4), list[list[float]]()

    def note(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        groups = ([p.grad for p in group["params"] if p.grad is not None] for group in optimizer.param_groups)
        stepped.append([float(nn.utils.get_total_norm(gradients)) for gradients in groups])

    handle = register_optimizer_step_post_hook(note)
    train_agent(agent, task, begun(), terms=terms, rollouts=1, phase="p")
    handle.remove()
    clipped = [sum(norm**2 for norm in norms) ** 0.5 for norms in stepped]
    assert clipped == pytest.approx([1e-3] * len(clipped), rel=1e-3) and len(clipped) == 4
    assert all(norm > 1e-6 for norms in stepped for norm in norms)


def test_acting_and_learning_go_by_the_precision_of_the_run() -> None:
    task = ag.Reinforcement(GAME, num_envs=4)
    agent, seen = Agent(space(), example=task.example, actions=4), dict[bool, set[torch.dtype]]()

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        seen.setdefault(torch.is_grad_enabled(), set()).add(output.dtype)

    agent.policy.register_forward_hook(note)
    train_agent(agent, task, begun(precision="bf16-mixed"), terms=TINY, rollouts=1, phase="p")
    assert seen == {False: {torch.bfloat16}, True: {torch.bfloat16}}


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    task = ag.Reinforcement(GAME, num_envs=4)
    run = ag.Run(seed=0, device="cpu", progress=False)
    run.begin("test", {})
    with pytest.raises(NonFiniteError, match="loss became NaN"):
        train_agent(
            Agent(space(), example=task.example, actions=4), task, run,
            terms=dataclasses.replace(TINY, entropy_coef=float("inf")), rollouts=1, phase="p",
        )  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        {"rollout_steps": 0},
        {"minibatch_size": 1.5},
        {"gamma": 1.1},
        {"gae_lambda": -0.1},
        {"learning_rate": True},
        {"clip_range": -1.0},
    ],
)
def test_numbers_out_of_range_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        PpoTerms(**given)


def test_an_encoder_for_other_images_is_refused() -> None:
    with pytest.raises(ModelError, match=r"does not run on images of shape \[3, 9, 9\]"):
        Agent(space(), example=torch.zeros(1, 3, 9, 9), actions=2)
    assert (PUBLISHED.rollout_steps, PUBLISHED.minibatch_size, PUBLISHED.epochs, PUBLISHED.learning_rate) == (
        1024,
        2048,
        2,
        5e-4,
    )
