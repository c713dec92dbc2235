"""The UNet of torchcfm, arXiv:2302.00482."""

import importlib.metadata
from collections.abc import Callable
from typing import Any

from experiments.bench.timing import timed
from experiments.bench.unet_config import Plan


class Torchcfm:
    """torchcfm's UNet in PyTorch: compiled, bfloat16 autocast, channels last, fused Adam, TF32."""

    def __init__(self, plan: Plan, mode: str):
        import torch
        from torchcfm.models.unet import UNetModel

        self.torch, self.plan, self.mode = torch, plan, mode
        network = plan.network
        self.name = "cuda" if plan.device == "gpu" else "cpu"
        if self.name == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("it sees no GPU")
        torch.manual_seed(plan.seed)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True  # the quickest algorithm, as XLA picks it
        model = UNetModel(
            (3, network.image_size, network.image_size),
            network.channels,
            network.num_blocks,
            channel_mult=list(network.multipliers),
            num_heads=4,
            num_head_channels=network.head_dim,
            attention_resolutions=str(network.attention),
            dropout=network.dropout,
        )
        self.model = model.to(self.name, memory_format=torch.channels_last)
        self.field = self.model
        if mode != "eager":
            self.field = torch.compile(self.model, mode=mode, dynamic=False)

    def device(self) -> str:
        return self.torch.cuda.get_device_name() if self.name == "cuda" else "cpu"

    def versions(self) -> dict[str, str]:
        found = {name: importlib.metadata.version(name) for name in ("torch", "torchcfm")}
        return {**found, "cudnn": str(self.torch.backends.cudnn.version())}

    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def forget(self) -> None:
        """A new peak: that of tuning is not that of training."""
        if self.name == "cuda":
            self.torch.cuda.reset_peak_memory_stats()

    def memory(self) -> int | None:
        return self.torch.cuda.max_memory_allocated() if self.name == "cuda" else None

    def check(self) -> dict[str, Any]:
        """Nothing: its precision is PyTorch's own affair."""
        return {}

    def autocast(self):
        return self.torch.autocast(self.name, dtype=self.torch.bfloat16)

    def velocity(self, t, x):
        if self.name == "cuda":  # with CUDA graphs a result lives until the next call
            self.torch.compiler.cudagraph_mark_step_begin()
        with self.autocast():
            return self.field(t, x)

    def wait(self) -> None:
        if self.name == "cuda":
            self.torch.cuda.synchronize()

    def prepare(self, batch: int) -> tuple[Callable[[], float], dict[str, Any]]:
        """A round of training steps; the first step, which compiles, is already made."""
        torch, training = self.torch, self.plan.training
        params = list(self.model.parameters())
        average = [p.detach().clone() for p in params]
        optimizer = torch.optim.Adam(params, lr=training.learning_rate, fused=True)
        data = torch.from_numpy(self.plan.network.images(self.plan.seed)).permute(0, 3, 1, 2)
        data = data.to(self.name).float() / 127.5 - 1
        data = data.contiguous(memory_format=torch.channels_last)
        self.model.train()

        def step():
            x1 = data[torch.randint(len(data), (batch,), device=self.name)]
            x0, t = torch.randn_like(x1), torch.rand(batch, device=self.name)
            error = self.velocity(t, torch.lerp(x0, x1, t[:, None, None, None])) - (x1 - x0)
            loss = torch.mean(error.float() ** 2)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_lerp_(average, params, 1 - training.ema_decay)
            return loss.detach()

        def steps():
            total = torch.zeros((), device=self.name)
            for _ in range(training.steps_per_call):
                total += step()
            return float(total) / training.steps_per_call  # waits for the device

        _, seconds = timed(lambda: float(step()))
        return steps, {"compile_seconds": seconds}

    def sampler(self, batch: int) -> Callable[[], Any]:
        torch, nfe = self.torch, self.plan.sampling.nfe
        n, height, width, channels = self.plan.network.shape(batch)
        noise = torch.randn(n, channels, height, width, device=self.name)
        noise = noise.contiguous(memory_format=torch.channels_last)
        self.model.eval()

        @torch.no_grad()
        def draw():
            x = noise
            for k in range(nfe):
                t = torch.full((n,), k / nfe, device=self.name)
                x = x + self.velocity(t, x).float() / nfe
            self.wait()
            return x

        return draw
