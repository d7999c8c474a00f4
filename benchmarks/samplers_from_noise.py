"""How far the noiseless samplers end from the probability flow, started at pure noise, on every schedule.

    python benchmarks/samplers_from_noise.py [--evaluations 10 20 40 80]

The largest error of 200 points of the chapters' mixture, against the flow solved by SciPy to 1e-10, at equal numbers
of evaluations of the denoiser: Heun takes two a step, the others one. All start at t = 1 and end at t = 0.02, on times
even in t, and even in log-SNR. In brackets the order of convergence between the last two columns.
"""

import argparse
import math

import torch

from difflesson import kernels
from difflesson.ode import probability_flow, solve
from difflesson.plane import four_blobs
from difflesson.samplers import draw, time_grid
from difflesson.schedule import cosine, from_betas, vp_linear

SCHEDULES = {
    "vp_linear()": vp_linear(),
    "cosine()": cosine(),
    "from_betas, DDPM's table": from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
}
SAMPLERS = {
    "ddim": (kernels.ddim, 1),
    "reverse_sde, rho = 0": (lambda denoiser, schedule: kernels.reverse_sde(denoiser, schedule, 0.0), 1),
    "heun": (kernels.heun, 2),
    "dpmpp_2m": (kernels.dpmpp_2m, 1),
}
END = 0.02
CLOCK = cosine()  # the flow depends on the log-SNR alone; here it is smooth in time, in a table it is not


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, nargs="+", default=[10, 20, 40, 80])
    counts = parser.parse_args().evaluations
    start = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for spacing in ("time", "log-SNR"):
        print(f"times even in {spacing:26}" + "".join(f"{count:>10}" for count in counts) + "   evaluations")
        for title, schedule in SCHEDULES.items():
            denoiser = four_blobs().denoiser(schedule)
            ends = [float(CLOCK.time(schedule.log_snr(t))) for t in (1.0, END)]
            truth = solve(probability_flow(four_blobs().denoiser(CLOCK), CLOCK), start, *ends, tolerance=1e-10)
            for name, (make, each) in SAMPLERS.items():
                grids = [time_grid(n // each, None if spacing == "time" else schedule, end=END) for n in counts]
                errors = [float((draw(make(denoiser, schedule), start, g) - truth).abs().max()) for g in grids]
                order = math.log(errors[-2] / errors[-1]) / math.log(counts[-1] / counts[-2])
                print(f"{title:24}  {name:20}" + "".join(f"{e:10.1e}" for e in errors) + f"   ({order:.1f})")
        print()


if __name__ == "__main__":
    main()
