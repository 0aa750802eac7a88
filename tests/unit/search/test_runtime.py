"""Where training runs; two processes on the CPU by gloo, of a network without norms over a batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import search
from search import SearchError
from search.runtime import TrainingRuntime
from search.train import make_optimizer

ROOT = Path(search.__file__).parents[1]


def test_setup_keeps_the_parameters_and_makes_images_channels_last(tiny):
    runtime = TrainingRuntime()
    network = tiny.module()
    before = [id(parameter) for parameter in network.parameters()]
    runtime.setup(network, [make_optimizer(network, lr=0.1, momentum=0.9, weight_decay=0.0)])
    assert [id(parameter) for parameter in network.parameters()] == before
    assert runtime.send(torch.zeros(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)


def test_images_and_weights_can_be_contiguous():
    runtime = TrainingRuntime(memory_format="contiguous")
    network = nn.Conv2d(3, 4, 3)
    runtime.setup(network, [torch.optim.SGD(network.parameters())])
    assert network.weight.is_contiguous()
    assert runtime.send(torch.zeros(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)).is_contiguous()


def stem(channels=3, kernel=1, stride=2):
    return nn.Sequential(nn.Conv2d(channels, 16, kernel, stride))


@pytest.mark.parametrize(
    ("network", "capability", "contiguous"),
    [
        (stem(), "AVX2", True),
        (stem(), "AVX512", False),
        (stem(channels=8), "AVX2", False),
        (stem(kernel=3), "AVX2", False),
        (stem(stride=1), "AVX2", False),
    ],
)
def test_networks_that_corrupt_memory_in_channels_last_are_contiguous(network, capability, contiguous, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    runtime = TrainingRuntime()
    runtime.setup(network, [torch.optim.SGD(network.parameters())])
    assert runtime.send(torch.randn(2, 3, 8, 8)).is_contiguous() == contiguous


@pytest.mark.skipif(torch.cuda.is_available(), reason="of CPUs")
def test_a_strided_pointwise_layer_on_images_is_trained():
    """Memory that is corrupted ends the process."""
    runtime, network = TrainingRuntime(), stem()
    optimizer = torch.optim.SGD(network.parameters())
    wrapped, _ = runtime.setup(network, [optimizer])
    for _ in range(20):
        runtime.backward(runtime.forward(wrapped, runtime.send(torch.randn(64, 3, 16, 16))).sum())
    assert network[0].weight.grad.isfinite().all()


def test_bf16_computes_in_it_and_keeps_weights_and_losses():
    runtime = TrainingRuntime(precision="bf16")
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.dtype)
            return x

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 4), Spy())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    wrapped, _ = runtime.setup(network, [optimizer])
    images = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    logits = runtime.forward(wrapped, images)
    runtime.backward(logits.sum())
    assert seen == [torch.bfloat16]
    assert logits.dtype == network[0].weight.dtype == network[0].weight.grad.dtype == torch.float32
    exact = nn.functional.linear(images, network[0].weight, network[0].bias)
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, rtol=0.02, atol=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(SearchError, match="^--train-precision fp16 needs a GPU, and there is none: give bf16 or fp32$"):
        TrainingRuntime(precision="fp16")


def test_more_devices_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SearchError, match="^--devices must be at most the number of GPUs of this machine, 2, found 4$"):
        TrainingRuntime(devices=4)


# What both trainings below are: three epochs with momentum, a penalty, and a parameter that some steps leave out.
TRAINING = """
import torch
from torch import nn
from search.runtime import TrainingRuntime
from deploy.metric import Metric
from search.task import Task
from search.train import TrainingPart, make_optimizer, train_epoch

class Classes(Task):
    metric = Metric(name="accuracy")
    def loss(self, logits, labels):
        return nn.functional.cross_entropy(logits, labels)
    def statistics(self, logits, labels):
        return (logits.argmax(1) == labels)[:, None].float()

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.body, self.extra = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head, self.calls = nn.Linear(8, 2), 0

    def forward(self, x):
        self.calls += 1
        x = torch.relu(self.first(x))
        x = x + self.body(x)
        if self.calls % 2:
            x = self.extra(x)
        return self.head(x.mean((2, 3)))

class Batches:
    def __init__(self, seed):
        self.seed = seed
    def __len__(self):
        return 3
    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(3):
            yield torch.randn(8, 3, 6, 6, generator=generator), torch.randint(2, (8,), generator=generator)

def train(runtime):
    torch.manual_seed(0)
    network = Network()
    wrapped, (optimizer,) = runtime.setup(network, [make_optimizer(network, lr=0.1, momentum=0.9, weight_decay=1e-3)])
    def loss(logits, labels, images):
        return Classes().loss(logits, labels) + 0.1 * network.first.weight.abs().mean()
    scores = []
    for epoch in range(3):
        part = TrainingPart(optimizers=[optimizer], batches=Batches(epoch), loss=loss, factor=lambda step: 1.0)
        scores.append(train_epoch(wrapped, [part], task=Classes(), runtime=runtime))
    return network, scores[-1]
"""

CHILD = """
import sys
from safetensors.torch import save_file
if MODE == "killed" and int(__import__("os").environ["LOCAL_RANK"]) == 1:
    import signal
    Batches.__iter__ = lambda self: __import__("os").kill(__import__("os").getpid(), signal.SIGKILL)
runtime = TrainingRuntime(devices=2)
try:
    network, score = train(runtime)
except PeerLost as lost:
    sys.exit(f"said: {lost}")
save_file({name: value.contiguous() for name, value in network.state_dict().items()}, f"{OUT}/{runtime.rank}.safetensors")
print(runtime.rank, runtime.ranks, score.loss, score.score)
"""


def in_two_processes(out: Path, mode: str = "") -> subprocess.CompletedProcess[str]:
    preamble = f"import sys; sys.path.insert(0, {str(ROOT)!r}); OUT, MODE = {str(out)!r}, {mode!r}\nfrom search.processes import PeerLost\n"
    script = out / "train.py"
    script.write_text(preamble + TRAINING + CHILD)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom search import SearchError, processes\n"
    code += f"try: sys.exit(processes.run([sys.executable, {str(script)!r}], 2))\nexcept SearchError as error: sys.exit(str(error))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)


def test_two_processes_train_what_one_does(tmp_path):
    ended = in_two_processes(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    space: dict = {}
    exec(TRAINING, space)
    alone, score = space["train"](TrainingRuntime())
    both = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for name, value in alone.state_dict().items():
        assert torch.equal(both[0][name], both[1][name])
        torch.testing.assert_close(both[0][name], value, rtol=1e-6, atol=1e-6)
    rank, ranks, loss, accuracy = ended.stdout.split()
    assert (rank, ranks) == ("0", "2")
    assert float(loss) == pytest.approx(score.loss, rel=1e-5)
    assert float(accuracy) == score.score


def test_a_process_that_is_killed_ends_the_others_in_one_line(tmp_path):
    ended = in_two_processes(tmp_path, "killed")
    assert ended.returncode == 1
    assert ended.stderr == "said: another process of the run has ended: the same command goes on\n"


def test_a_batch_that_cannot_be_shared_is_refused():
    runtime = TrainingRuntime()
    runtime.ranks, runtime.rank = 2, 1
    assert runtime.share(torch.arange(4)).tolist() == [2, 3]
    with pytest.raises(
        SearchError, match="^a batch of 5 samples cannot be divided among 2 devices: give another --batch$"
    ):
        runtime.share(torch.arange(5))
