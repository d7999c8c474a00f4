"""How fast the digit networks are beside diffusers' U-Net, and how many digits a second each sampler draws, how good.

    python benchmarks/digits_speed.py [--networks denoiser pocket] [--count 1000] [--seeds 3] [--gamma 1]
            [--batches 64 128 256] [--tables ...] [--threads 2] [--clock wall] [--device cuda] [--out FILE]

Three tables, warm, in one process. *Evaluations*: a network asked about one image once; parameters and multiply-adds of
such a call (torch.utils.flop_counter), and how many it answers in a second by number format, memory layout and batch.
*Samplers*: digits a second, the share of the time that is not the network's, the judge's accuracy, and the digit-FID to
the MNIST test images, its mean over the seeds and the standard error; it grows as the count gets smaller, so the first
row is that of as many training digits, where MNIST is to be had. *Changes*: one at a time to what
`difflesson sample` does unasked. In "one branch where they agree" the scale is 2 while the log-SNR is in (-6, 3), and 1
elsewhere, where only the conditional branch is asked; "gamma 1: both branches" shows what asking just one saves.
Batch and layout change no digit by more than rounding; what they gain, the first table shows. Nothing is asserted.
Close what you can before you measure; where others compute meanwhile, take one thread and `--clock processor`.
"""

import argparse
import os
import platform
import statistics
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from difflesson.cli import pick_device
from difflesson.digits import checkpoints, data, metrics, sampling

FORMATS = {"fp32": None, "bf16": torch.bfloat16}
LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
STEPS = {"ddpm": (8, 12, 16), "ddim": (8, 12), "dpmpp_2m": (6, 8, 12), "heun": (4, 6)}
FAST = 8  # steps of dpmpp_2m
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
clock = CLOCKS["wall"]
TABLES = ("evaluations", "samplers", "changes")
INSIDE = (-6.0, 3.0)  # log-SNR, where the branches differ


class Peer(nn.Module):
    """diffusers' UNet2DModel as a denoiser of digits, with random weights, attention in the middle as ours has it.

    Args: fold: side of the squares of pixels that are folded into channels before it, 2 as in ours, or 1 for none.
    """

    def __init__(self, fold: int, widths: tuple[int, ...]):
        super().__init__()
        from diffusers import UNet2DModel

        self.fold, levels = fold, len(widths)
        self.unet = UNet2DModel(
            sample_size=28 // fold, in_channels=fold**2, out_channels=fold**2, block_out_channels=widths,
            layers_per_block=1, norm_num_groups=8, attention_head_dim=32, num_class_embeds=11,
            down_block_types=("DownBlock2D",) * levels, up_block_types=("UpBlock2D",) * levels,
        )  # fmt: skip

    def forward(self, x, log_snr, label):
        folded = nn.functional.pixel_unshuffle(x, self.fold)
        return nn.functional.pixel_shuffle(self.unet(folded, log_snr, label).sample, self.fold)


def peers(device: torch.device) -> dict[str, nn.Module]:
    """Of like size, where diffusers is installed: on folded pixels, and on the pixels themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies
        try:
            made = {"UNet2DModel, folded": Peer(2, (64, 96)), "UNet2DModel": Peer(1, (32, 64, 96))}
        except ImportError:
            return {}
    return {name: network.to(device).eval().requires_grad_(False) for name, network in made.items()}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- evaluations


def multiply_adds(network: nn.Module, device: torch.device) -> float:
    """Of one call for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs(1, device))
    return counter.get_total_flops() / 2


def inputs(batch: int, device: torch.device):
    """Noise, noise levels and labels for a batch."""
    x = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return x.to(device), torch.linspace(-9, 8, batch).to(device), (torch.arange(batch) % 10).to(device)


@torch.no_grad()
def evaluations(network, batch: int, dtype, device: torch.device, seconds: float) -> float:
    """How many a second: the median over calls that fill some seconds, after one to warm up."""
    given, times = inputs(batch, device), []
    while len(times) < 3 or sum(times[1:]) < seconds:
        start = clock()
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            network(*given)
        wait(device)
        times.append(clock() - start)
    return batch / statistics.median(times[1:])


def table_of_evaluations(say, networks: dict[str, nn.Module], args, device) -> None:
    say(f"{'evaluations a second':22}{'parameters':>11}{'MMACs':>7}  {'':22}", *(f"{b:>8}" for b in args.batches))
    for name, network in networks.items():
        size = f"{sum(p.numel() for p in network.parameters()):11,}{multiply_adds(network, device) / 1e6:7.1f}"
        for label, dtype in FORMATS.items():
            for layout, memory in LAYOUTS.items():
                network.to(memory_format=memory)
                rates = [evaluations(network, batch, dtype, device, args.seconds) for batch in args.batches]
                say(f"{name:22}{size}  {label + ', ' + layout:22}", *(f"{rate:8.0f}" for rate in rates))
        network.to(memory_format=torch.contiguous_format)
    say("")


# ---- samplers


@contextmanager
def timed_network(network: nn.Module, device: torch.device, spent: list[float]):
    """Append the seconds of each call of the network to `spent`."""

    def before(*_):
        wait(device)
        spent.append(-clock())

    def after(*_):
        wait(device)
        spent[-1] += clock()

    hooks = network.register_forward_pre_hook(before), network.register_forward_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Gallery:
    """Draws, judges and says one line: what all rows have in common."""

    def __init__(self, say, args, device):
        self.say, self.args, self.device = say, args, device
        self.judge = checkpoints.load("judge", device).network
        self.reference, self.card = metrics.load_reference()
        self.labels = torch.arange(args.count) % 10

    def head(self, what: str) -> None:
        self.first = None
        self.say(f"{what:44}{'asked':>6}{'digits/s':>10}{'times':>7}{'elsewhere':>11}{'accuracy':>10}{'digit-FID':>11}")

    def row(self, title: str, network: nn.Module, gamma, **options) -> None:
        """Of one setting; `times` compares its speed with that of the table's first row."""
        options = {"batch": 128, "dtype": None} | options
        sampling.generate(network, self.labels[: options["batch"]], gamma, **options | {"steps": 2})  # to warm up
        spent, total, pictures = [], 0.0, []
        with timed_network(network, self.device, spent):
            for seed in range(self.args.seeds):
                start = clock()
                pictures.append(sampling.generate(network, self.labels, gamma, seed=seed, **options))
                total += clock() - start
        speed = len(self.labels) * self.args.seeds / total
        self.first = self.first or speed
        part = f"{100 * (1 - sum(spent) / total):10.1f}%"
        asked = self.asked(network, gamma, **options)
        self.judged(title, pictures, f"{asked:6.0f}{speed:10.1f}{speed / self.first:7.2f}{part}")

    def asked(self, network: nn.Module, gamma, **options) -> int:
        """Evaluations of the network for one digit: both branches are one call of twice the batch."""
        sizes = []
        hook = network.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
        sampling.generate(network, self.labels[:1], gamma, **options)
        hook.remove()
        return sum(sizes)

    def judged(self, title: str, pictures: list, speed: str = f"{'':34}") -> None:
        reports = [metrics.digit_report(self.judge, x, self.labels, self.reference) for x in pictures]
        accuracy = statistics.mean(report["accuracy"] for report in reports)
        fids = [report["digit_fid"] for report in reports]
        error = f" +- {statistics.stdev(fids) / len(fids) ** 0.5:.3f}" if len(fids) > 1 else ""
        self.say(f"{title:44}{speed}{100 * accuracy:9.2f}%{statistics.mean(fids):11.3f}{error}")

    def real(self) -> None:
        """The row of real digits: training images, as many, of each class in turn."""
        try:
            train = data.load("mnist", "train")
        except (data.DataUnavailable, ValueError):
            return
        places = [(train.labels == label).nonzero()[:, 0] for label in range(10)]
        each = self.args.count // 10
        pictures = []
        for seed in range(self.args.seeds):
            chosen = torch.stack([place[seed * each : (seed + 1) * each] for place in places], dim=1).flatten()
            pictures.append(data.to_unit(train.images[chosen]))
        self.judged("real training digits", pictures)


def table_of_samplers(gallery: Gallery, networks: dict[str, nn.Module], args) -> None:
    gallery.head(f"gamma {args.gamma:g}, fp32, batch 128")
    gallery.real()
    for name, network in networks.items():
        for sampler in args.samplers:
            for steps in args.steps or STEPS[sampler]:
                gallery.row(f"{name}, {sampler}, {steps} steps", network, args.gamma, sampler=sampler, steps=steps)
    gallery.say("")


def scale_inside(schedule, gamma: float, low: float, high: float):
    """gamma while the log-SNR is in (low, high), and 1 elsewhere."""
    return lambda t: gamma if low < float(schedule.log_snr(t)) < high else 1.0


def table_of_changes(gallery: Gallery, networks: dict[str, nn.Module]) -> None:
    shipped = networks["denoiser"]
    inside = scale_inside(shipped.schedule, 2.0, *INSIDE)
    usual, bf16 = dict(sampler="ddpm", steps=16, batch=64), dict(dtype=torch.bfloat16)
    fast = usual | dict(sampler="dpmpp_2m", steps=FAST)
    gallery.head("one change at a time")
    changes = [
        ("as it is: gamma 2, ddpm 16, fp32, batch 64", shipped, 2.0, usual),
        ("bf16", shipped, 2.0, usual | bf16),
        ("one branch where they agree", shipped, inside, usual),
        ("gamma 1: one branch", shipped, 1.0, usual),
        ("gamma 1: both branches", shipped, 1 + 1e-9, usual),
        (f"dpmpp_2m {FAST}", shipped, 2.0, fast),
        (f"dpmpp_2m {FAST}, one branch", shipped, inside, fast),
        (f"dpmpp_2m {FAST}, one branch, bf16", shipped, inside, fast | bf16),
    ]
    for name, network in networks.items():
        if network is not shipped:
            changes += [(name, network, 2.0, usual), (f"{name}, dpmpp_2m {FAST}", network, 2.0, fast)]
            changes += [(f"{name}, dpmpp_2m {FAST}, one branch", network, inside, fast)]
    for title, network, gamma, options in changes:
        gallery.row(title, network, gamma, **options)
    gallery.say("")


def processor() -> str:
    """The kind of processor, without the machine's name."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["denoiser", "pocket"], help="shipped, or files")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each number of evaluations a second")
    parser.add_argument("--count", type=int, default=1000, help="digits a seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gamma", type=float, default=1.0)
    parser.add_argument("--samplers", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--steps", type=int, nargs="+", help="by default a list for each sampler")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="processor: on a machine that others use")
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, help="a text file that gets what is printed")
    args = parser.parse_args()
    global clock
    clock = CLOCKS[args.clock]
    torch.set_num_threads(args.threads)
    device, lines = pick_device(args.device), []

    def say(*words: str) -> None:
        lines.append(" ".join(words))
        print(lines[-1], flush=True)

    place = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    say(f"{place}; {args.threads} threads; torch {torch.__version__}, Python {platform.python_version()}")
    say(f"seconds of the {args.clock} clock; where digits are drawn, {args.seeds} times {args.count}\n")
    networks = {Path(name).stem: checkpoints.load(name, device).network for name in args.networks}
    gallery = Gallery(say, args, device)
    if "evaluations" in args.tables:
        table_of_evaluations(say, networks | peers(device), args, device)
    if "samplers" in args.tables:
        table_of_samplers(gallery, networks, args)
    if "changes" in args.tables:
        table_of_changes(gallery, networks)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
