"""Settings of each method. Each field is a flag of `lathe search METHOD`, with its docstring as help.

Needs no torch.
"""

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
"""The teacher of every method that trains an unpruned network."""

MANY_IMAGES = 10_000
"""Training images above which `recipe` chooses fewer, longer epochs."""

PRUNET_TRAVEL = 26.0
"""Learning rate of PRUNET's theta times its number of steps in long searches; with many more steps at the paper's 0.1,
noise decides. In short searches, the logarithm of alpha can move at least this far."""

Retraining = Literal["rewind", "finetune", "scratch"]
"""Weights that the chosen network of a method that learns widths is trained from."""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings common to all methods: how networks are trained.

    A method's own settings override defaults by a field of the same name.

    Attributes:
        name: name of the method on the command line.
    """

    name: ClassVar[str]
    needs_budget: ClassVar[bool] = True
    """False: without a budget, every network of the space is allowed"""

    seed: int = 0
    """seed of all random numbers"""
    batch: int = 64
    """images per step, over all devices"""
    lr: float = 0.05
    """learning rate of the weights"""
    momentum: float = 0.875
    """momentum of the weights' gradients"""
    weight_decay: float = 5e-4
    """weight decay; norms, biases and the parameters that decide the search are not decayed"""
    label_smoothing: float = 0.1
    """share of the target that is spread over all classes"""
    schedule: Schedule = "cosine"
    """learning rate of a phase: cosine (half a cosine down to 0) or exponential
    (times --lr-decay every --lr-decay-epochs)"""
    lr_decay: float = 0.97
    """factor of the exponential schedule"""
    lr_decay_epochs: float = 2.4
    """epochs between two steps of the exponential schedule"""
    augment: str = "auto"
    """auto (the data's default), none, or a selection of
    crop:PIXELS,resized-crop:SHARE,flip,randaugment:MAGNITUDE,cutout:PIXELS"""
    ema: float = 0.0
    """decay of a moving average of the weights, such as 0.9999, which is evaluated and shipped instead of them;
    0: none"""
    drop_path: float = 0.0
    """probability of dropping the last residual branch in training,
    lower for earlier ones in proportion (stochastic depth)"""
    distill: Distillation = "none"
    """match a teacher while the chosen network is trained: tas (soft cross-entropy) or hinton (divergence times T^2)"""
    teacher: str = UNPRUNED
    """the teacher: unpruned (the network that the search starts from), or the directory of a finished run"""
    distill_weight: float = 0.9
    """weight of the labels' loss; the rest to 1 is the weight of the match"""
    temperature: float = 4.0
    """temperature T, which divides the logits of both networks"""
    retrain: Literal["finetune", "scratch"] = "finetune"
    """train the chosen network from its weights (finetune) or from new ones (scratch)"""
    train_precision: Precision = "fp32"
    """precision of forward and backward pass: fp32, or mixed with bf16 or (on a GPU) fp16"""
    memory_format: MemoryFormat = "channels_last"
    """memory format of images and convolution weights"""
    devices: int = 1
    """number of GPUs, or of CPU processes, that share every batch"""

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
        """Return the names of settings that do not affect the first phase.

        Runs that differ only in these can share it.
        """
        return frozenset()

    def require_range(self, name: str, low: float | int, high: float | int = 10**9) -> None:
        """Require that a field is from `low` to `high`.

        Raises:
            SearchError: it is not; names the flag.
        """
        value = getattr(self, name)
        if not low <= value <= high:
            raise SearchError(f"--{name.replace('_', '-')} must be from {low} to {high}, found {value}")

    def require_positive(self, name: str) -> None:
        """Require that a field is above 0 and finite.

        Raises:
            SearchError: it is not; names the flag.
        """
        value = getattr(self, name)
        if not (value > 0 and math.isfinite(value)):
            raise SearchError(f"--{name.replace('_', '-')} must be above 0 and finite, found {value}")


class PruningSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings common to all methods of widths.

    The defaults suit a few thousand small images; `recipe` adapts them to the data.
    """

    pretrain_epochs: int = 10
    """epochs of the unpruned network before the search; 0: start from its given weights"""
    search_epochs: int = 10
    """epochs of the search, at the full learning rate"""
    finetune_epochs: int = 10
    """epochs of the chosen network, by --schedule"""
    min_channels: int = 8
    """minimum number of channels of every layer"""
    channel_multiple: int = 8
    """shipped widths are multiples of this, or the full width; 1: any width that the table can price"""
    exclude: str = ""
    """layers and modules that are not pruned: names or patterns such as block0,layer4.*, separated by commas"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range("pretrain_epochs", 0)
        for name in ("search_epochs", "finetune_epochs", "min_channels", "channel_multiple"):
            self.require_range(name, 1)

    @classmethod
    def after_first_phase(cls) -> frozenset[str]:
        """Return all settings that do not affect the training of the unpruned network."""
        return frozenset(cls.__struct_fields__) - frozenset(Settings.__struct_fields__) - {"pretrain_epochs"}

    @property
    def excluded(self) -> list[str]:
        """The names and patterns in `exclude`."""
        return [pattern for pattern in self.exclude.split(",") if pattern]


class PasSettings(PruningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pruning-as-Search: learn a 0 or 1 for every channel together with the weights, then fine-tune the rest."""

    name = "pas"

    retrain: Retraining = "rewind"  # pyright: ignore[reportIncompatibleVariableOverride]
    """train the chosen network from the weights of the unpruned network (rewind), from those of the search
    (finetune), or from new ones (scratch)"""
    policy_lr: float = 0.5
    """learning rate of the indicators"""
    bounded: bool = True
    """keep indicators between 0 and 1, so that old decisions can be reversed quickly; the paper does not"""
    beta: float = 0.1
    """weight of the penalty at the start of the search; the controller adapts it"""
    beta_rate: float = 0.05
    """rate of that adaptation, as an exponent per step at a relative error of 1"""
    cost: Literal["latency", "macs"] = "latency"
    """unit of the penalty: the table's microseconds, or multiply-accumulates; the budget is the same either way"""
    regulariser: Literal["relative", "paper"] = "relative"
    """form of the penalty: relative, (cost / target - 1)^2, or the paper's in squared GMACs (with --cost macs)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("policy_lr", "beta", "beta_rate"):
            self.require_positive(name)
        if self.regulariser == "paper" and self.cost != "macs":
            raise SearchError(f"--regulariser paper is in squared GMACs: it needs --cost macs, found {self.cost}")


class UniformSettings(PruningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Baseline: keep the same share of every group's channels, those with the largest filters.

    Pruned once, before the search's epochs.
    """

    name = "uniform"


class MagnitudeSettings(PruningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Baseline: remove channels with small filters, by one threshold for all groups.

    Pruned once, before the search's epochs.
    """

    name = "magnitude"


class SlimmingSettings(PruningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Baseline: network slimming.

    An L1 penalty on the norms' scales during the search, then channels with small scales are removed.
    """

    name = "slimming"

    retrain: Retraining = "finetune"  # pyright: ignore[reportIncompatibleVariableOverride]
    """train the chosen network from the weights of the unpruned network (rewind), from those of the search
    (finetune), or from new ones (scratch)"""
    slimming: float = 1e-3
    """weight of the L1 penalty on the norms' scales; Liu et al. 2017 use 1e-4 over ten times as many epochs"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("slimming")


class TableSettings(PruningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Table alone: keep the most important channels within the budget, by a mixed-integer program.

    Pruned before the search's epochs.
    """

    name = "table"

    score: Literal["taylor", "magnitude", "slimming"] = "taylor"
    """importance of a channel: taylor (change of the loss without it),
    magnitude (of its filters) or slimming (scales of its norms)"""
    score_images: int = 2048
    """number of training images for taylor"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range("score_images", 1)


class VpDartsSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """VP-DARTS: keep each edge's operation whose removal hurts validation most, then train the cell from scratch."""

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
    """As printed; batch and learning rate, which are not printed, are those of NAS-Bench-201's own searches."""

    batch: int = 100
    """images per step, over all devices"""
    lr: float = 0.1
    """learning rate of the weights"""
    momentum: float = 0.9
    """Nesterov momentum of the weights' gradients"""
    label_smoothing: float = 0.0
    """share of the target that is spread over all classes"""
    clip: float = 5.0
    """maximum norm of the gradient of the supernet's weights"""
    warmup_epochs: int = 10
    """epochs of only the supernet's weights"""
    prune_epochs: int = 8
    """epochs of weights and alphas; every operation is validated before each"""
    train_epochs: int = 20
    """epochs of the chosen cell, from new weights, by --schedule"""
    variant: Literal["adjustable", "fixed", "hard", "progressive", "darts", "random"] = "adjustable"
    """soft pruning with K = epoch (adjustable) or K = max_epoch (fixed), hard at once,
    or hard from 5 to 3 to 2 operations (progressive); darts: softmax, no validation;
    random: cells drawn at random, each trained in turn, for as many epochs in all"""
    criterion: Literal["validation", "alpha"] = "validation"
    """importance of an operation: how much its removal hurts validation, or its alpha"""
    importance: Literal["auto", "loss", "accuracy"] = "auto"
    """measure of a removal: auto is loss below 5,000 validation images, else accuracy with loss as tie-break;
    accuracy is the paper's"""
    validation_share: float = 1 / 3
    """share of the training images that are held out for validation"""
    subset: float = 0.3
    """share of the validation images per epoch, drawn anew"""
    final_subset: float = 0.6
    """the same for the last validation"""
    looks: Literal["all", "last"] = "all"
    """choose the final cell by the mean of all validations of the removals, or by the last one (the paper's)"""
    prune_images: float = 0.5
    """share of the images trained on in a pruning epoch, drawn anew"""
    alpha: float = 0.2
    """initial alpha of every operation"""
    alpha_lr: float = 5e-3
    """Adam's learning rate of the alphas"""
    split: Literal["one-level", "alternating"] = "one-level"
    """train alphas together with the weights (one-level),
    or in turns with them on the validation images (alternating)"""
    alpha_0: Literal["current", "initial"] = "current"
    """the alpha that Eq. 2 shrinks: the value at the start of the epoch (current) or of the search (initial)"""
    first_k: Literal[0, 1] = 1
    """K of the first pruning epoch if K is adjustable"""
    removal: Literal["edge", "cell"] = "edge"
    """remove an operation from all cells at once (edge), or from one cell at a time and take the mean (cell)"""
    zeroize: Literal["candidate", "never"] = "candidate"
    """whether the operation none can be chosen"""
    norms: Literal["batch", "running"] = "batch"
    """statistics that norms use while operations are validated"""
    negative_alphas: bool = True
    """whether alphas may be negative"""
    skip_dropout: float = 0.2
    """dropout after skip during the warm-up"""
    prune_dropout: float = 0.0
    """dropout after skip during pruning"""
    latency_weight: float = 0.1
    """initial weight of the expected cost in the loss,
    if the largest cell exceeds the budget (an extension of the paper)"""
    latency_rate: float = 0.05
    """rate at which that weight adapts, as an exponent per step at a relative error of 1"""
    random_epochs: int = 3
    """epochs per cell of the variant random"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range("warmup_epochs", 0)
        for name in ("train_epochs", "prune_epochs", "random_epochs"):
            self.require_range(name, 1)
        for name in (
            "subset",
            "final_subset",
            "prune_images",
            "alpha",
            "alpha_lr",
            "clip",
            "latency_weight",
            "latency_rate",
        ):
            self.require_positive(name)
        for name in ("subset", "final_subset", "prune_images"):
            self.require_range(name, 0, 1)
        for name in ("validation_share", "skip_dropout", "prune_dropout"):
            self.require_range(name, 0, 1 - 1e-9)
        self.require_positive("validation_share")
        if self.criterion == "alpha" and self.variant == "random":
            raise SearchError("--criterion alpha has no meaning for --variant random, which trains no alphas")


class PrunetSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PRUNET: prune widths, blocks and layers of a supernet in training, then train the rest from scratch."""

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
    """As printed; the paper's other numbers are the defaults. So are alpha, lam and phi,
    for which the paper has several values, and tau, which it does not give;
    the optimizer of the final training is GPUNet's."""

    label_smoothing: float = 0.1
    """share of the target that is spread over all classes while the chosen network is trained;
    the search has no label smoothing"""
    retrain: Literal["finetune", "scratch"] = "scratch"
    """train the chosen network from new weights (scratch) or from those of the supernet (finetune)"""
    optimizer: Literal["sgd", "rmsprop"] = "sgd"
    """optimizer of the chosen network"""
    warmup_epochs: int = 10
    """epochs of only the supernet's weights; --baseline starts from those of another run"""
    search_epochs: int = 20
    """epochs of weights and architecture weights; blocks are removed after each"""
    train_epochs: int = 20
    """epochs of the chosen network, by --schedule"""
    search_batch: int = 64
    """images per step of the supernet, over all devices"""
    search_lr: float = 0.002
    """RMSprop's learning rate of the supernet's weights, half a cosine down to 0 over warm-up and search"""
    search_weight_decay: float = 1e-5
    """weight decay of the supernet's weights"""
    theta_lr: float = 0.1
    """Adam's learning rate of the blocks' architecture weights, half a cosine down to 0;
    the recipe auto lowers it in long searches, to at least 0.01, so that decisions fall later and are more reliable"""
    width_lr: float = 0.1
    """Adam's learning rate of the Prunodes' weights, half a cosine down to 0"""
    theta_images: float = 0.2
    """share of an epoch's images that train the architecture weights; the others train the weights"""
    proxy_classes: float = 1.0
    """share of the classes, chosen at random, on which the supernet is trained; the paper's is 0.1"""
    alpha: float = 1.0
    """weight of the latency in the loss, alpha * ln(latency in microseconds) ** beta;
    its initial value if a budget binds"""
    alpha_rate: float = 0.02
    """rate at which alpha adapts if a budget binds, as an exponent per step at a relative error of 1;
    the recipe auto raises it in short searches"""
    beta: float = 0.6
    """exponent of the logarithm of the latency"""
    tau: float = 1.0
    """temperature of the Gumbel softmaxes"""
    threshold: Literal["linear", "constant"] = "linear"
    """probability below which blocks are removed:
    from --t-initial to --t-final over the epochs (linear), or always --t-initial"""
    t_initial: float = 0.15
    """first threshold; at most 1 / (number of blocks of a layer), otherwise all blocks would be below it"""
    t_final: float = 0.55
    """last threshold; at least 0.5, so that each layer keeps a single block"""
    phi: float = 1.1
    """factor on the output of a skip block until one of the last two blocks of its layer is removed"""
    lam: float = 0.55
    """lambda, factor on the output of the skip block's competitor; the paper has 0.4, 0.55 and 0.85;
    lower values keep more layers"""
    prunode: Literal["scaled", "paper"] = "scaled"
    """how masks move: as printed in Algorithm 1 (paper), or with its corner case fixed,
    its updates scaled by the distance between the masks and an Adam that forgets fast (scaled)"""
    last_norm: Literal["shared", "each"] = "shared"
    """add the two candidates of a Prunode before the last norm (shared), or normalise each separately (each;
    more time and memory)"""
    prune_widths: bool = True
    """False: all hidden widths stay at their largest"""
    prune_blocks: bool = True
    """False: no block is removed during the search, and the most probable ones are taken at its end"""
    prune_layers: bool = True
    """False: no layer is skipped"""
    recompute: bool = False
    """recompute activations inside the supernet's blocks in the backward pass instead of storing them:
    less memory, more time"""

    @classmethod
    def after_first_phase(cls) -> frozenset[str]:
        """Return the settings of the search's decisions and of the final training.

        All alpha and lambda share a warm-up (Appendix A.2).
        """
        theta = {"theta_lr", "width_lr", "theta_images", "threshold", "t_initial", "t_final"}
        return frozenset({"alpha", "alpha_rate", "beta", "phi", "lam", "train_epochs", "optimizer", "retrain"} | theta)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range("warmup_epochs", 0)
        for name in ("search_epochs", "train_epochs", "search_batch"):
            self.require_range(name, 1)
        for name in (
            "search_lr",
            "theta_lr",
            "width_lr",
            "alpha",
            "alpha_rate",
            "beta",
            "tau",
            "phi",
            "lam",
            "proxy_classes",
            "t_initial",
        ):
            self.require_positive(name)
        for name in ("search_weight_decay", "proxy_classes", "t_initial"):
            self.require_range(name, 0, 1)
        self.require_positive("theta_images")
        self.require_range("theta_images", 0, 1 - 1e-9)
        if self.threshold == "linear" and not 0.5 <= self.t_final < 1:
            raise SearchError(
                "--t-final must be from 0.5, so that one block is left of each layer, and below 1, or every block "
                "would be removed; "
                f"found {self.t_final}"
            )
        if self.search_batch % self.devices:
            raise SearchError(
                f"--search-batch must be a multiple of --devices, {self.devices}, found {self.search_batch}"
            )


class TasSettings(PruningSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TAS: learn distributions over widths and depths with a network of sampled sizes.

    The chosen one is distilled from the unpruned one.
    """

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
    """As printed for CIFAR. For ImageNet, the paper has 120 epochs per phase,
    a weight decay of 1e-4 and a distill weight of 0.5."""

    lr: float = 0.1
    """learning rate of the weights"""
    momentum: float = 0.9
    """momentum of the weights' gradients"""
    label_smoothing: float = 0.0
    """share of the target that is spread over all classes"""
    distill: Distillation = "tas"
    """match a teacher while the chosen network is trained: tas (soft cross-entropy) or hinton (divergence times T^2)"""
    retrain: Retraining = "scratch"  # pyright: ignore[reportIncompatibleVariableOverride]
    """train the chosen network from new weights (scratch), from those of the unpruned network (rewind), or from those
    of the search (finetune)"""
    min_channels: int = 1
    """minimum number of channels of every layer"""
    start: Literal["unpruned", "scratch"] = "unpruned"
    """start the search from the weights of the unpruned network, or from new ones (scratch)"""
    searched: Literal["auto", "both", "widths", "depths"] = "auto"
    """the sizes to search; auto: both if the space has stages that can lose blocks, such as resnet20/widths,
    otherwise widths"""
    depth_options: Literal["all", "odd"] = "all"
    """depths of a stage: 1, 2, 3, ... blocks (all), or 1, 3, 5, ... and the full depth (odd)"""
    samples: int = 2
    """number of widths of each layer that a step samples, |I|"""
    weights: Literal["sample", "mixture"] = "sample"
    """weights of the sizes in a step: sampled with Gumbel noise, or the probabilities of all sizes (mixture)"""
    interpolate: bool = True
    """align sampled widths by channel-wise interpolation; False: by zero padding"""
    norms: Literal["shared", "each"] = "shared"
    """norms of sampled widths: slices of one norm, at the cost of one width (shared), or one norm per width,
    as in the paper (each)"""
    architecture_lr: float = 0.01
    """Adam's constant learning rate of the distributions; the recipe auto raises it in short searches;
    the paper's is 0.001"""
    architecture_weight_decay: float = 0.0
    """weight decay of the distributions' logits"""
    tau_schedule: Literal["linear", "cosine"] = "linear"
    """schedule by which the temperature falls"""
    tau: float = 10.0
    """initial temperature; the authors' code has 5, with a cosine schedule"""
    tau_final: float = 0.1
    """final temperature"""
    validation_share: float = 0.5
    """share of the training images that train the distributions instead of the weights"""
    cost: Literal["latency", "macs"] = "latency"
    """unit of the penalty: the table's microseconds, or multiply-accumulates; the budget is the same either way"""
    penalty: Literal["controlled", "banded", "paper"] = "controlled"
    """controlled: squared log of expected cost over an aim,
    which is adapted until the most probable network's cost meets the target;
    banded: signed log of expected cost over target outside the tolerance;
    paper: the same gradient, but the log of the expected cost alone (Eq. 8)"""
    cost_weight: float = 2.0
    """lambda_cost, weight of the penalty; 0: no penalty"""
    aim_rate: float = 0.05
    """rate at which the aim adapts, as an exponent per step at a relative error of 1"""
    tolerance: float = 0.05
    """t, relative distance to the target within which there is no penalty;
    the chosen network is within it too, if its options allow"""
    entropy: float = 1.0
    """final weight of the distributions' mean entropy, which grows with the square of the progress:
    for depths until half of the search, for widths until its end and only while the cost is at the target;
    in the last epochs of a controlled search,
    weight of the negative log probability of the network that would be chosen"""
    derive: Literal["fit", "argmax"] = "fit"
    """the chosen network: the most probable one within the budget, by a mixed-integer program (fit),
    or the most probable size of each part (argmax)"""

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
    """Return settings for a data set, or those of the method's paper.

    For baselines, those of the Pruning-as-Search paper.

    `auto`: the defaults for up to 10,000 training images; for more, a search of fewer but longer epochs. `paper` (Li et
    al. 2022, Section 5.1): 10 epochs of search from a trained network at a learning rate rewound to 0.4, then 50 epochs
    of cosine annealing with frozen indicators; any number of channels; ImageNet's standard augmentation. A single
    optimizer trains all parameters, so the indicators have the same rate, and no bounds. If no trained network is
    given, one is trained for 120 epochs, as by the authors of RepVGG.

    Args:
        kind: class of settings; fields of a recipe that it lacks are ignored.
        images: number of training images.
        name: name of the recipe.
        given: fields that are already chosen.

    Raises:
        SearchError: a setting is invalid.
    """
    if issubclass(kind, TasSettings) and name == "auto":
        given = {"architecture_lr": _architecture_lr(kind(**given), images)} | given
    if issubclass(kind, PrunetSettings) and name == "auto":
        given = _prunet_rates(kind(**given), images) | given
    if issubclass(kind, VpDartsSettings | PrunetSettings | TasSettings):
        return kind(**((kind.paper if name == "paper" else {}) | given))
    many: dict[str, Any] = {
        "pretrain_epochs": 16,
        "search_epochs": 6,
        "finetune_epochs": 16,
        "batch": 128,
        "lr": 0.1,
        "policy_lr": 0.1,
    }
    paper: dict[str, Any] = {
        "pretrain_epochs": 120,
        "search_epochs": 10,
        "finetune_epochs": 50,
        "batch": 1024,
        "lr": 0.4,
        "policy_lr": 0.4,
    }
    paper |= {"momentum": 0.875, "weight_decay": 3.05e-5, "label_smoothing": 0.0, "bounded": False}
    paper |= {"min_channels": 1, "channel_multiple": 1, "augment": "resized-crop,flip", "retrain": "finetune"}
    chosen = paper if name == "paper" else many if images > MANY_IMAGES else {}
    return kind(**({field: value for field, value in chosen.items() if field in kind.__struct_fields__} | given))


def _architecture_lr(settings: TasSettings, images: int) -> float:
    """Return the learning rate, raised in short searches so that a logit can move by 8 over all steps."""
    steps = settings.search_epochs * max(1, round(images * settings.validation_share) // settings.batch)
    return max(settings.architecture_lr, 8 / steps)


def _prunet_rates(settings: PrunetSettings, images: int) -> dict[str, float]:
    """Return rates for theta and alpha that suit the length of the search.

    Theta moves as far in long searches as in short ones, and alpha as far in short ones as in long ones.

    Adam moves a weight by about its rate per step.
    """
    steps = settings.search_epochs * max(
        1, round(images * settings.proxy_classes * settings.theta_images) // settings.search_batch
    )
    rate = PRUNET_TRAVEL / steps
    return {"theta_lr": min(settings.theta_lr, max(0.01, rate)), "alpha_rate": max(settings.alpha_rate, rate)}
