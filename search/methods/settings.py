"""What can be set of each method. A field is a flag of `lathe search METHOD`, and its docstring the help of it. Needs no torch."""

import math
from typing import Any, ClassVar, Literal, TypeVar

from msgspec import Struct

from search import transforms
from search.errors import SearchError

P = TypeVar("P", bound="Settings")

Recipe = Literal["auto", "paper"]
Schedule = Literal["cosine", "exponential"]
Distillation = Literal["none", "tas", "hinton"]
Precision = Literal["fp32", "bf16", "fp16"]
MemoryFormat = Literal["channels_last", "contiguous"]

UNPRUNED = "unpruned"
"""The teacher that every method with such a network has."""

MANY_IMAGES = 10_000
"""Training images above which `recipe` chooses fewer, longer epochs."""

PRUNET_TRAVEL = 26.0
"""Rate of PRUNET's theta times steps that train it, in long searches: at the paper's 0.1, noise decides when there are many more steps.
As far, at least, the logarithm of alpha can move, in short searches."""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every method has: how networks are trained. Another default is a field of the same name in the method's own settings.

    Attributes:
        name: of the method, as the command line has it.
    """

    name: ClassVar[str]
    needs_budget: ClassVar[bool] = True
    """False: without a budget every network of the space is within it"""

    seed: int = 0
    """seed of everything that is random"""
    batch: int = 64
    """images a step, of all devices together"""
    lr: float = 0.05
    """learning rate of the weights"""
    momentum: float = 0.875
    """of the weights' gradients"""
    weight_decay: float = 5e-4
    """of weights only: neither norms and biases nor what decides the search are decayed"""
    label_smoothing: float = 0.1
    """share of the target that is spread over all classes"""
    schedule: Schedule = "cosine"
    """learning rate of a phase: down to 0 by half a cosine, or exponential: times --lr-decay every --lr-decay-epochs"""
    lr_decay: float = 0.97
    """factor of the exponential schedule"""
    lr_decay_epochs: float = 2.4
    """epochs between two of its steps"""
    augment: str = "auto"
    """auto (what the data comes with), none, or of crop:PIXELS,resized-crop:SHARE,flip,randaugment:MAGNITUDE,cutout:PIXELS some"""
    ema: float = 0.0
    """decay of an average of the weights, such as 0.9999, which is evaluated and shipped in their place; 0: none"""
    drop_path: float = 0.0
    """probability with which the last residual branch is left out in training, earlier ones in proportion (stochastic depth)"""
    distill: Distillation = "none"
    """match a teacher when the chosen network is trained: tas (soft cross-entropy) or hinton (divergence times T^2)"""
    teacher: str = UNPRUNED
    """what it matches: unpruned (the network that the search starts from), or the directory of a finished run"""
    distill_weight: float = 0.9
    """of the labels; what is left to 1 is that of the match"""
    temperature: float = 4.0
    """T, which divides the logits of both"""
    retrain: Literal["finetune", "scratch"] = "finetune"
    """train the chosen network on from its weights, or from new ones"""
    train_precision: Precision = "fp32"
    """of forward and backward pass: fp32, or mixed with bf16 or (on a GPU) fp16"""
    memory_format: MemoryFormat = "channels_last"
    """of images and weights of convolutions"""
    devices: int = 1
    """GPUs, or processes on the CPU, that share every batch"""

    def __post_init__(self) -> None:
        self.require_range("seed", 0, 2**63 - 1)
        for name in ("batch", "devices"):
            self.require_range(name, 1)
        for name in ("lr", "lr_decay", "lr_decay_epochs", "temperature"):
            self.require_positive(name)
        for name in ("momentum", "weight_decay", "label_smoothing", "lr_decay", "distill_weight"):
            self.require_range(name, 0, 1)
        for name in ("ema", "drop_path"):
            self.require_range(name, 0, 1 - 1e-9)
        transforms.parse(self.augment)
        if self.batch % self.devices:
            raise SearchError(f"--batch must be a multiple of --devices, {self.devices}, found {self.batch}")
        if self.teacher != UNPRUNED and self.distill == "none":
            raise SearchError(f"--teacher {self.teacher} needs --distill tas or hinton")

    @classmethod
    def after_first_phase(cls) -> frozenset[str]:
        """Names of settings that the first phase does not depend on: runs that differ in these alone can share it."""
        return frozenset()

    def require_range(self, name: str, low: float | int, high: float | int = 10**9) -> None:
        """Check that a field is from `low` to `high`.

        Raises:
            SearchError: it is not; names the flag.
        """
        value = getattr(self, name)
        if not low <= value <= high:
            raise SearchError(f"--{name.replace('_', '-')} must be from {low} to {high}, found {value}")

    def require_positive(self, name: str) -> None:
        """Check that a field is above 0 and finite.

        Raises:
            SearchError: it is not; names the flag.
        """
        value = getattr(self, name)
        if not (value > 0 and math.isfinite(value)):
            raise SearchError(f"--{name.replace('_', '-')} must be above 0 and finite, found {value}")


class PruningSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every method of widths has. The defaults suit a few thousand small images; `recipe` chooses by the data."""

    pretrain_epochs: int = 10
    """epochs of the unpruned network before the search; 0: start from its weights as they are"""
    search_epochs: int = 10
    """epochs of the search, at the full learning rate"""
    finetune_epochs: int = 10
    """epochs of the chosen widths, by --schedule"""
    min_channels: int = 8
    """channels that every layer keeps at least"""
    channel_multiple: int = 8
    """shipped widths are multiples of it, or the full width; 1: any width that the table can price"""
    exclude: str = ""
    """what stays whole: layers, modules or patterns such as block0,layer4.*, separated by commas"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range("pretrain_epochs", 0)
        for name in ("search_epochs", "finetune_epochs", "min_channels", "channel_multiple"):
            self.require_range(name, 1)

    @classmethod
    def after_first_phase(cls) -> frozenset[str]:
        """All that the unpruned network's training does not have."""
        return frozenset(cls.__struct_fields__) - frozenset(Settings.__struct_fields__) - {"pretrain_epochs"}

    @property
    def excluded(self) -> list[str]:
        """The names and patterns in `exclude`."""
        return [pattern for pattern in self.exclude.split(",") if pattern]


class PasSettings(PruningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pruning-as-Search: a 0 or 1 for every channel is learned together with the weights, then what is left is fine-tuned."""

    name = "pas"

    policy_lr: float = 0.5
    """learning rate of the indicators"""
    bounded: bool = True
    """keep indicators within 0 and 1, so that what was decided long ago can soon be decided otherwise; the paper does not"""
    beta: float = 0.1
    """weight of the penalty at the start of the search; the controller adapts it"""
    beta_rate: float = 0.05
    """how fast it does, as an exponent a step at a relative error of 1"""
    cost: Literal["latency", "macs"] = "latency"
    """what the penalty counts: microseconds of the table, or multiply-accumulates; the budget is the same either way"""
    regulariser: Literal["relative", "paper"] = "relative"
    """form of the penalty: (cost / target - 1)^2, or the paper's in squared GMACs (with --cost macs)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("policy_lr", "beta", "beta_rate"):
            self.require_positive(name)
        if self.regulariser == "paper" and self.cost != "macs":
            raise SearchError(f"--regulariser paper is in squared GMACs: it needs --cost macs, found {self.cost}")


class UniformSettings(PruningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Baseline: the same share of every group's channels is kept, those of the largest filters; pruned once, before the search's epochs."""

    name = "uniform"


class MagnitudeSettings(PruningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Baseline: channels of small filters go, by one threshold for all groups; pruned once, before the search's epochs."""

    name = "magnitude"


class SlimmingSettings(PruningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Baseline: network slimming; an L1 penalty on the scales of norms during the search, then channels of small scales go."""

    name = "slimming"

    slimming: float = 1e-3
    """weight of the L1 norm of the norms' scales; Liu et al. 2017 have 1e-4 over ten times as many epochs"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("slimming")


class TableSettings(PruningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table alone: the most important channels that fit the budget, by a mixed-integer program; pruned before the search's epochs."""

    name = "table"

    score: Literal["taylor", "magnitude", "slimming"] = "taylor"
    """what a channel is worth: taylor (the change of the loss without it), magnitude (of its filters) or slimming (scales of its norms)"""
    score_images: int = 2048
    """training images that taylor looks at"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range("score_images", 1)


class VpDartsSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """VP-DARTS: the operation of each edge whose removal hurts the validated supernet most stays; then its cell is trained from scratch."""

    name = "vp-darts"
    needs_budget = False
    paper: ClassVar[dict[str, Any]] = {
        "warmup_epochs": 20,
        "prune_epochs": 30,
        "train_epochs": 200,
        "importance": "accuracy",
        "validation_share": 0.5,
        "subset": 0.5,
        "final_subset": 0.5,
        "looks": "last",
        "prune_images": 1.0,
        "skip_dropout": 0.2,
        "prune_dropout": 0.2,
        "batch": 64,
        "lr": 0.025,
    }
    """As printed; batch and learning rate, which are not, as of NAS-Bench-201's own searches."""

    batch: int = 100
    """images a step, of all devices together"""
    lr: float = 0.1
    """learning rate of the weights"""
    momentum: float = 0.9
    """of the weights' gradients, Nesterov's"""
    label_smoothing: float = 0.0
    """share of the target that is spread over all classes"""
    clip: float = 5.0
    """largest norm of the weights' gradient in the supernet"""
    warmup_epochs: int = 10
    """epochs of the supernet's weights alone"""
    prune_epochs: int = 8
    """epochs of weights and alphas, before each of which every operation is validated"""
    train_epochs: int = 20
    """epochs of the found cell, from new weights, by --schedule"""
    variant: Literal["adjustable", "fixed", "hard", "progressive", "darts", "random"] = "adjustable"
    """pruning is soft with K = epoch (adjustable) or K = max_epoch (fixed), hard at once, or hard from 5 to 3 to 2 operations;
    darts: softmax, nothing validated; random: cells drawn at random and trained one after the other for as many epochs"""
    criterion: Literal["validation", "alpha"] = "validation"
    """what an operation is worth: how much its removal hurts, or its alpha"""
    importance: Literal["auto", "loss", "accuracy"] = "auto"
    """how removal hurts: auto is loss below 5,000 validation images, and accuracy with loss as tie-break above; accuracy is the paper's"""
    validation_share: float = 1 / 3
    """of the training images, which validate and are not trained on"""
    subset: float = 0.3
    """share of the validation images that an epoch looks at, drawn anew"""
    final_subset: float = 0.6
    """the same for the last look"""
    looks: Literal["all", "last"] = "all"
    """by what the final cell is chosen: the mean of all looks at the removals, or the last one (the paper's)"""
    prune_images: float = 0.5
    """share of the trained images that a pruning epoch shows, drawn anew"""
    alpha: float = 0.2
    """of every operation at the start"""
    alpha_lr: float = 5e-3
    """Adam's learning rate of the alphas"""
    split: Literal["one-level", "alternating"] = "one-level"
    """alphas are trained with the weights, or in turns on the validation images"""
    alpha_0: Literal["current", "initial"] = "current"
    """what Eq. 2 shrinks: the value at the start of the epoch, or the one of the first"""
    first_k: Literal[0, 1] = 1
    """K of the first pruning epoch under adjustable K"""
    removal: Literal["edge", "cell"] = "edge"
    """an operation is removed from all cells at once, or from one after the other, of which the mean counts"""
    zeroize: Literal["candidate", "never"] = "candidate"
    """whether none can be what stays"""
    norms: Literal["batch", "running"] = "batch"
    """statistics of the norms while operations are validated"""
    negative_alphas: bool = True
    """whether an alpha may fall below 0"""
    skip_dropout: float = 0.2
    """dropout behind skip in the warm-up"""
    prune_dropout: float = 0.0
    """the same while pruning"""
    latency_weight: float = 0.1
    """weight of the expected cost in the loss at the start, where the largest cell is over the budget (an extension: the paper has none)"""
    latency_rate: float = 0.05
    """how fast that weight adapts, as an exponent a step at a relative error of 1"""
    random_epochs: int = 3
    """variant random: epochs of each cell"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range("warmup_epochs", 0)
        for name in ("train_epochs", "prune_epochs", "random_epochs"):
            self.require_range(name, 1)
        for name in ("subset", "final_subset", "prune_images", "alpha", "alpha_lr", "clip", "latency_weight", "latency_rate"):
            self.require_positive(name)
        for name in ("subset", "final_subset", "prune_images"):
            self.require_range(name, 0, 1)
        for name in ("validation_share", "skip_dropout", "prune_dropout"):
            self.require_range(name, 0, 1 - 1e-9)
        self.require_positive("validation_share")
        if self.criterion == "alpha" and self.variant == "random":
            raise SearchError("--criterion alpha has no meaning for --variant random, which trains no alphas")


class PrunetSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PRUNET: a supernet of blocks loses widths, blocks and layers while it is trained; what is left is then trained from scratch."""

    name = "prunet"
    needs_budget = False
    paper: ClassVar[dict[str, Any]] = {
        "warmup_epochs": 70,
        "search_epochs": 130,
        "train_epochs": 450,
        "search_batch": 256,
        "batch": 1536,
        "lr": 0.06,
        "optimizer": "rmsprop",
        "momentum": 0.9,
        "weight_decay": 1e-5,
        "schedule": "exponential",
        "lr_decay": 0.97,
        "lr_decay_epochs": 2.4,
        "ema": 0.9999,
        "drop_path": 0.2,
        "augment": "resized-crop,flip,randaugment:9",
        "train_precision": "fp16",
        "proxy_classes": 0.1,
        "prunode": "paper",
        "last_norm": "each",
    }
    """As printed; the other numbers of the paper are the defaults. alpha, lam and phi, of which it tries several, and tau, which it does
    not say, are the defaults too; the optimizer of the training is that of GPUNet."""

    label_smoothing: float = 0.1
    """share of the target that is spread over all classes, when the found network is trained; the search has none"""
    retrain: Literal["finetune", "scratch"] = "scratch"
    """train the found network from new weights, or on from those of the supernet"""
    optimizer: Literal["sgd", "rmsprop"] = "sgd"
    """of the found network's training"""
    warmup_epochs: int = 10
    """epochs of the supernet's weights alone; --baseline starts from those of another run"""
    search_epochs: int = 20
    """epochs of weights and architecture weights, at the end of each of which blocks are removed"""
    train_epochs: int = 20
    """epochs of the found network, by --schedule"""
    search_batch: int = 64
    """images a step of the supernet, of all devices together"""
    search_lr: float = 0.002
    """RMSprop's learning rate of the supernet's weights, down to 0 by half a cosine over warm-up and search"""
    search_weight_decay: float = 1e-5
    """of the supernet's weights"""
    theta_lr: float = 0.1
    """Adam's learning rate of the blocks' architecture weights, down to 0 by half a cosine; the recipe auto lowers it in long searches, to
    no less than 0.01, which decides later and more surely"""
    width_lr: float = 0.1
    """the same of the Prunodes' weights"""
    theta_images: float = 0.2
    """share of the images of an epoch that train the architecture weights; the others train the weights"""
    proxy_classes: float = 1.0
    """share of the classes that the supernet is trained on, chosen at random; the paper has 0.1"""
    alpha: float = 1.0
    """weight of the latency in the loss, alpha * ln(latency in microseconds) ** beta; where a budget binds, the start of it"""
    alpha_rate: float = 0.02
    """where a budget binds: how fast alpha adapts, as an exponent a step at a relative error of 1; the recipe auto raises it in short
    searches"""
    beta: float = 0.6
    """exponent of the logarithm of the latency"""
    tau: float = 1.0
    """temperature of the Gumbel softmaxes"""
    threshold: Literal["linear", "constant"] = "linear"
    """blocks that are less probable are removed: from --t-initial to --t-final over the epochs, or --t-initial throughout"""
    t_initial: float = 0.15
    """first threshold; at most 1 over the number of blocks of a layer, or all would be below it"""
    t_final: float = 0.55
    """last threshold; from 0.5, so that one block is left of each layer"""
    phi: float = 1.1
    """factor on the output of a block that skips, until one of the last two blocks of its layer is removed"""
    lam: float = 0.55
    """lambda, factor on the output of its competitor; the paper has 0.4, 0.55 and 0.85: the lower, the more layers stay"""
    prunode: Literal["scaled", "paper"] = "scaled"
    """how masks move: by Algorithm 1 with its corner case repaired, its updates scaled by the distance of the masks and an Adam that
    forgets fast, or as printed"""
    last_norm: Literal["shared", "each"] = "shared"
    """the two candidates of a Prunode are added before the last norm, or each is normalised by itself, which takes more time and memory"""
    prune_widths: bool = True
    """False: hidden widths stay at their largest"""
    prune_blocks: bool = True
    """False: no block is removed, and the most probable ones are taken at the end"""
    prune_layers: bool = True
    """False: no layer is skipped"""
    recompute: bool = False
    """compute what is inside of the supernet's blocks again in the backward pass instead of keeping it: less memory, more time"""

    @classmethod
    def after_first_phase(cls) -> frozenset[str]:
        """Those of what decides and of the found network's training; the warm-up is one for all alpha and lambda (Appendix A.2)."""
        theta = {"theta_lr", "width_lr", "theta_images", "threshold", "t_initial", "t_final"}
        return frozenset({"alpha", "alpha_rate", "beta", "phi", "lam", "train_epochs", "optimizer", "retrain"} | theta)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range("warmup_epochs", 0)
        for name in ("search_epochs", "train_epochs", "search_batch"):
            self.require_range(name, 1)
        for name in ("search_lr", "theta_lr", "width_lr", "alpha", "alpha_rate", "beta", "tau", "phi", "lam", "proxy_classes", "t_initial"):
            self.require_positive(name)
        for name in ("search_weight_decay", "proxy_classes", "t_initial"):
            self.require_range(name, 0, 1)
        self.require_positive("theta_images")
        self.require_range("theta_images", 0, 1 - 1e-9)
        if self.threshold == "linear" and not 0.5 <= self.t_final < 1:
            raise SearchError(
                f"--t-final must be from 0.5, so that one block is left of each layer, and below 1, or every block would be removed; "
                f"found {self.t_final}"
            )
        if self.search_batch % self.devices:
            raise SearchError(f"--search-batch must be a multiple of --devices, {self.devices}, found {self.search_batch}")


class TasSettings(PruningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TAS: distributions over widths and depths are learned with a network of sampled sizes; the found one learns from the unpruned one."""

    name = "tas"
    paper: ClassVar[dict[str, Any]] = {
        "pretrain_epochs": 300,
        "search_epochs": 600,
        "finetune_epochs": 300,
        "batch": 256,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "label_smoothing": 0.0,
        "schedule": "cosine",
        "augment": "crop:4,flip",
        "retrain": "scratch",
        "distill": "tas",
        "distill_weight": 0.9,
        "temperature": 4.0,
        "channel_multiple": 1,
        "start": "scratch",
        "searched": "auto",
        "depth_options": "all",
        "samples": 2,
        "weights": "sample",
        "interpolate": True,
        "norms": "each",
        "architecture_lr": 1e-3,
        "architecture_weight_decay": 1e-3,
        "tau_schedule": "linear",
        "tau": 10.0,
        "tau_final": 0.1,
        "validation_share": 0.5,
        "cost": "macs",
        "penalty": "paper",
        "cost_weight": 2.0,
        "tolerance": 0.05,
        "entropy": 0.0,
        "derive": "argmax",
    }
    """As printed, for CIFAR. For ImageNet it has 120 epochs of each, a weight decay of 1e-4 and a distill weight of 0.5."""

    lr: float = 0.1
    """learning rate of the weights"""
    momentum: float = 0.9
    """of the weights' gradients"""
    label_smoothing: float = 0.0
    """share of the target that is spread over all classes"""
    distill: Distillation = "tas"
    """match a teacher when the chosen network is trained: tas (soft cross-entropy) or hinton (divergence times T^2)"""
    retrain: Literal["scratch", "init", "finetune"] = "scratch"  # pyright: ignore[reportIncompatibleVariableOverride]
    """train the chosen network from new weights, from the first channels of the unpruned network (init), or from those of the search"""
    min_channels: int = 1
    """channels that every layer keeps at least"""
    start: Literal["unpruned", "scratch"] = "unpruned"
    """the search starts from the weights of the unpruned network, or from new ones"""
    searched: Literal["auto", "both", "widths", "depths"] = "auto"
    """what is searched; auto: both where the space has stages that can lose blocks, such as resnet20/widths, and widths elsewhere"""
    depth_options: Literal["all", "odd"] = "all"
    """depths of a stage: 1, 2, 3, ... blocks, or 1, 3, 5, ... and all"""
    samples: int = 2
    """widths of a layer that a step samples, |I|"""
    weights: Literal["sample", "mixture"] = "sample"
    """of the sizes in a step: sampled with Gumbel noise, or all of them mixed by their probabilities"""
    interpolate: bool = True
    """align sampled widths by channel-wise interpolation; otherwise by zeros"""
    norms: Literal["shared", "each"] = "shared"
    """of sampled widths: slices of one norm, at the cost of one width, or a norm for each width, as the paper has it"""
    architecture_lr: float = 0.01
    """Adam's learning rate of the distributions, constant; the recipe auto raises it in short searches, the paper has 0.001"""
    architecture_weight_decay: float = 0.0
    """of the distributions' logits"""
    tau_schedule: Literal["linear", "cosine"] = "linear"
    """how the temperature falls"""
    tau: float = 10.0
    """temperature at the start; the authors' code has 5, with a cosine"""
    tau_final: float = 0.1
    """temperature at the end"""
    validation_share: float = 0.5
    """of the training images, which train the distributions and not the weights"""
    cost: Literal["latency", "macs"] = "latency"
    """what the penalty counts: microseconds of the table, or multiply-accumulates; the budget is the same either way"""
    penalty: Literal["controlled", "banded", "paper"] = "controlled"
    """controlled: the squared log of the expected cost over an aim, which the cost of the most probable network moves until it meets the
    target; banded: the log of expected cost over target, by sign, outside of the tolerance; paper: the same gradient, with the log of
    the expected cost alone (Eq. 8)"""
    cost_weight: float = 2.0
    """lambda_cost, weight of the penalty; 0: sizes are not constrained"""
    aim_rate: float = 0.05
    """how fast the aim moves, as an exponent a step at a relative error of 1"""
    tolerance: float = 0.05
    """t, relative distance to the target within which the penalty rests, and the found network is where its options allow it"""
    entropy: float = 1.0
    """weight of the distributions' mean entropy, to which it grows with the square of the progress: of depths by half of the search, of
    widths by its end, and only while the cost is at the target; in the last epochs of a controlled search, of minus the log of the
    probability of the network that would be found"""
    derive: Literal["fit", "argmax"] = "fit"
    """the found network: the most probable one within the budget, by a mixed-integer program, or the most probable size of each part"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range("samples", 1)
        for name in ("architecture_lr", "tau", "tau_final", "aim_rate", "validation_share", "tolerance"):
            self.require_positive(name)
        for name in ("validation_share", "tolerance"):
            self.require_range(name, 0, 1 - 1e-9)
        for name in ("architecture_weight_decay", "cost_weight", "entropy"):
            self.require_range(name, 0)


def recipe(kind: type[P], images: int, name: Recipe = "auto", /, **given: Any) -> P:
    """Settings that suit a data set, or those of the method's paper; of a baseline, those of the Pruning-as-Search paper.

    `auto`: the defaults for up to 10,000 training images, fewer but longer epochs' worth of search for more. `paper` (Li et al. 2022,
    Section 5.1): from a trained network, at a learning rate that is rewound to 0.4, 10 epochs of search; then 50 of cosine annealing with
    frozen indicators; widths of any number of channels; ImageNet's standard augmentation. One optimizer has all, so the indicators have
    that rate too, and no bounds. Without a trained network to start from it trains one for 120 epochs, as the authors of RepVGG did.

    Args:
        kind: of settings; what it has not of a recipe is left out.
        images: number of training images.
        name: of the recipe.
        given: fields that are chosen already.

    Raises:
        SearchError: a setting that makes no sense.
    """
    if issubclass(kind, TasSettings) and name == "auto":
        given = {"architecture_lr": _architecture_lr(kind(**given), images)} | given
    if issubclass(kind, PrunetSettings) and name == "auto":
        given = _prunet_rates(kind(**given), images) | given
    if issubclass(kind, VpDartsSettings | PrunetSettings | TasSettings):
        return kind(**((kind.paper if name == "paper" else {}) | given))
    many = {"pretrain_epochs": 16, "search_epochs": 6, "finetune_epochs": 16, "batch": 128, "lr": 0.1, "policy_lr": 0.1}
    paper = {"pretrain_epochs": 120, "search_epochs": 10, "finetune_epochs": 50, "batch": 1024, "lr": 0.4, "policy_lr": 0.4}
    paper |= {"momentum": 0.875, "weight_decay": 3.05e-5, "label_smoothing": 0.0, "bounded": False}
    paper |= {"min_channels": 1, "channel_multiple": 1, "augment": "resized-crop,flip"}
    chosen = paper if name == "paper" else many if images > MANY_IMAGES else {}
    return kind(**({field: value for field, value in chosen.items() if field in kind.__struct_fields__} | given))


def _architecture_lr(settings: TasSettings, images: int) -> float:
    """Of short searches, a rate by which a logit can move by 8 in all of the steps."""
    steps = settings.search_epochs * max(1, round(images * settings.validation_share) // settings.batch)
    return max(settings.architecture_lr, 8 / steps)


def _prunet_rates(settings: PrunetSettings, images: int) -> dict[str, float]:
    """Rates by which theta moves as far in long searches as in short ones, and alpha as far in short ones.

    Adam moves a weight by about its rate a step.
    """
    steps = settings.search_epochs * max(1, round(images * settings.proxy_classes * settings.theta_images) // settings.search_batch)
    rate = PRUNET_TRAVEL / steps
    return {"theta_lr": min(settings.theta_lr, max(0.01, rate)), "alpha_rate": max(settings.alpha_rate, rate)}
