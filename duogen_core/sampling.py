"""Flow-matching sampling of one picture, number for number what ComfyUI's KSampler does with euler and simple.

x_t = t * noise + (1 - t) * x0, v = noise - x0, t from 1 to 0 on a shifted schedule (sigma is t here). The schedule and
solver that Cosmos-Predict2.5 was published with, "karras" and "unipc", are diffusers' UniPCMultistepScheduler.
In:  a function of (x [B, c, h, w], t [B]) that gives the velocity under the condition, and for guidance a second one
     without the last text segment.
Out: the normalised latent x0 [B, c, h, w].
Follows ComfyUI's ModelSamplingDiscreteFlow (shift, multiplier 1), simple_scheduler, sample_euler, prepare_noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from duogen_core.errors import Cancelled, DuoGenError

if TYPE_CHECKING:  # the settings alone are read in many places that draw nothing
    from torch import Tensor

TABLE = 1000  # ComfyUI picks its steps from a table of this many times
SEEDS = 2**64

Velocities = Callable[["Tensor", "Tensor"], Sequence["Tensor"]]  # (x, t [B]) -> v for each branch of guidance
OnStep = Callable[[int, int, "Tensor"], None]  # (steps done, steps in all, the present guess of x0)
Step = Callable[["Tensor", "Tensor", int], "Tensor"]  # (x, the guess of x0, number of the step) -> x at the next time

SCHEDULES = ("shifted", "karras")
SOLVERS = ("euler", "unipc")
KARRAS = (200.0, 0.01, 7.0)  # largest and smallest noise over signal, rho: as Cosmos-Predict2.5 is sampled


class SamplingError(DuoGenError):
    """A setting of the sampler that has no meaning."""


@dataclass(frozen=True)
class Sampling:
    """How a DiT is sampled when nobody says otherwise; stored with its weights (model_index.json)."""

    # Ours: the paper publishes no such numbers.
    steps: int = 20
    guidance: float = 2.0
    shift: float = 1.0
    schedule: Literal["shifted", "karras"] = "shifted"
    solver: Literal["euler", "unipc"] = "euler"

    def __post_init__(self) -> None:
        for name, known in (("schedule", SCHEDULES), ("solver", SOLVERS)):
            if getattr(self, name) not in known:
                raise SamplingError(f"sampling.{name} is {getattr(self, name)!r}; expected {' or '.join(known)}.")


def checked_numbers(kind: type, values: Mapping[str, Any], where: str, error: type[DuoGenError] = SamplingError) -> Any:
    """Builds a dataclass of positive numbers, and of texts it checks itself. Ignores names of later versions."""
    known = {}
    for item in fields(kind):
        if item.name not in values:
            continue
        value = values[item.name]
        if isinstance(item.default, str):
            known[item.name] = value
            continue
        whole = isinstance(item.default, int)
        right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not right or not 0 <= value < 1e6 or (whole and value < 1):
            kinds = "a positive whole number" if whole else "a number of at least 0"
            raise error(f"{where}.{item.name} is {value!r}; expected {kinds}.")
        known[item.name] = value if whole else float(value)
    return kind(**known)


def sigmas(steps: int, shift: float = 1.0, schedule: str = "shifted") -> Tensor:
    """Returns [steps + 1] float32 times from 1 down to 0, closer together near 1 for a shift above 1.

    shifted: even in the table's unshifted time, rounded down to its entries, as ComfyUI's "simple" takes them: so both
    sample the same times even where steps does not divide 1000. karras: no shift; from 0.995 on.
    """
    import torch

    if schedule not in SCHEDULES:
        raise SamplingError(f"The schedule is {schedule!r}; expected {' or '.join(SCHEDULES)}.")
    if not 1 <= steps <= TABLE:
        raise SamplingError(f"The number of steps is {steps}; expected 1 to {TABLE}.")
    if not shift > 0:
        raise SamplingError(f"The shift is {shift}; expected a number above 0 (1 is no shift).")
    if schedule == "karras":
        return torch.cat([karras_time(torch.linspace(0, 1, steps, dtype=torch.float64)), torch.zeros(1)]).float()
    t = torch.arange(1, TABLE + 1) / TABLE
    table = t if shift == 1.0 else shift * t / (1 + (shift - 1) * t)
    every = TABLE / steps
    return torch.stack([*(table[-(1 + int(step * every))] for step in range(steps)), torch.tensor(0.0)])


def karras_time(place: Tensor) -> Tensor:
    """Returns the time at a place of Karras' schedule: 0 is its first, 1 its last but the 0 that follows."""
    largest, smallest, rho = KARRAS
    first, last = largest ** (1 / rho), smallest ** (1 / rho)
    noise = (first + place * (last - first)) ** rho
    return noise / (1 + noise)


def initial_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Returns float32 noise on the CPU: ComfyUI's numbers, for a latent [B, c, h, w] or [B, c, 1, h, w]."""
    import torch

    if not 0 <= seed < SEEDS:
        raise SamplingError(f"The seed is {seed}; expected 0 to {SEEDS - 1}.")
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def guide(positive: Tensor, negative: Tensor, guidance: float) -> Tensor:
    """Returns v_neg + g (v_pos - v_neg); g = 1 is no guidance."""
    return negative + (positive - negative) * guidance


def sample_picture(
    velocities: Velocities,
    noise: Tensor,
    times: Tensor,
    *,
    guidance: float = 1.0,
    solver: str = "euler",
    on_step: OnStep | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Samples a picture's latent from noise, on the device of `noise`; a step waits for nothing that lies there.

    velocities: gives one velocity, or two with guidance, the condition's first. `times` as from `sigmas`. Raises
    Cancelled between two steps. Guidance works on the guessed pictures rather than on velocities, as ComfyUI does:
    equal in exact arithmetic, and so equal to its rounding too.
    """
    times = times.to(noise.device)
    advance = step_of(solver, times)
    x = noise * times[0]
    for step in range(len(times) - 1):
        if cancelled is not None and cancelled():
            raise Cancelled(f"Sampling was stopped after {step} of {len(times) - 1} steps.")
        t = times[step]
        # x_t - t v = t noise + (1 - t) x0 - t (noise - x0) = x0
        guesses = [x - v.to(x) * t for v in velocities(x, t.expand(x.shape[0]))]
        guess = guesses[0] if len(guesses) == 1 else guide(*guesses, guidance)
        x = advance(x, guess, step)
        if on_step is not None:
            on_step(step + 1, len(times) - 1, guess)
    return x


def step_of(solver: str, times: Tensor) -> Step:
    """Returns the step function of a solver; it remembers what it needs from one step to the next."""
    if solver == "euler":
        return lambda x, guess, step: x + (x - guess) / times[step] * (times[step + 1] - times[step])
    if solver != "unipc":
        raise SamplingError(f"The solver is {solver!r}; expected {' or '.join(SOLVERS)}.")
    return UniPC(times)


class UniPC:
    """diffusers' UniPC for flow matching, of order 2, with its coefficients worked out before the first step.

    Its scheduler solves small systems of equations on x's device in every step, which makes Python wait for a GPU. But
    what it computes is linear: the corrected x and the next x are sums of the present x, the corrected x of the step
    before, and the last three guesses. So the scheduler runs once on the CPU, on unit vectors in their place, and what
    comes out are the coefficients.
    """

    def __init__(self, times: Tensor) -> None:
        import torch
        from diffusers import UniPCMultistepScheduler

        unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
        unipc.set_timesteps(len(times) - 1)
        unipc.sigmas = times.detach().cpu().double().clamp(max=1 - 1e-6)  # it takes the logarithm of 1 - t
        unipc.timesteps = unipc.sigmas[:-1] * unipc.config.num_train_timesteps
        unipc.set_begin_index(0)
        present, corrected, before_last, last, guess = torch.eye(5, dtype=torch.float64).view(5, 1, 1, 1, 5)
        self.coefficients: list[tuple[list[float], list[float]]] = []  # per step: of the corrected x, of the next x
        for step in range(len(times) - 1):
            unipc.model_outputs = [before_last if step > 1 else None, last if step else None]
            unipc.last_sample = corrected if step else None
            velocity = (present - guess) / unipc.sigmas[step]
            following = unipc.step(velocity, unipc.timesteps[step], present, return_dict=False)[0]
            self.coefficients.append((unipc.last_sample.flatten().tolist(), following.flatten().tolist()))
        self.corrected: Tensor | None = None
        self.guesses: list[Tensor | None] = [None, None]

    def __call__(self, x: Tensor, guess: Tensor, step: int) -> Tensor:
        state = (x, self.corrected, *self.guesses, guess)
        corrected, following = (
            sum(part * factor for part, factor in zip(state, factors) if part is not None and factor)
            for factors in self.coefficients[step]
        )
        self.corrected, self.guesses = corrected, [self.guesses[1], guess]
        return following
