"""Settings of a run, section by section."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cgnn.errors import ConfigError
from cgnn.strict import Strict, build_as, load_as
from cgnn.strict import differences as differences  # part of the face of settings, as dump is
from cgnn.strict import dump as dump
from cgnn.targets import Target


class SplitConfig(Strict):
    """How crystals are divided into training, validation and test parts."""

    method: str = "random"
    """An entry of ``cgnn.data.split.SPLITS``."""
    val: float = Field(default=0.1, ge=0, lt=1)
    """Share of the crystals that choose the best epoch."""
    test: float = Field(default=0.0, ge=0, lt=1)
    """Share of the crystals that are only evaluated at the end."""
    seed: int = Field(default=0, ge=0)
    file: str | None = None
    """For method ``file``: JSON with lists of ids under ``train``, ``val`` and ``test``."""
    element: str | None = None
    """For method ``element``: the crystals with this element are the test part."""
    folds: int = Field(default=5, ge=2)
    fold: int = Field(default=0, ge=0)
    """For method ``kfold``: which of the ``folds`` parts is the test part."""
    target: str | None = None
    """For method ``extrapolation``: the target (or column) whose outermost values are the test part."""
    direction: Literal["high", "low"] = "high"
    """For method ``extrapolation``: whether the largest or the smallest values are kept out."""
    column: str | None = None
    """For method ``column``: where ``train``, ``val`` (``valid``, ``validation``) or ``test`` stands."""
    keep_duplicates_together: bool = True
    """Put the same crystal under other ids or in other cells on one side."""

    @model_validator(mode="after")
    def _fits(self) -> SplitConfig:
        if self.val + self.test >= 1:
            raise ValueError("val + test must leave something to train on (be below 1)")
        if self.method == "file" and not self.file:
            raise ValueError("method 'file' needs 'file'")
        if self.method == "element" and not self.element:
            raise ValueError("method 'element' needs 'element'")
        if self.method == "column" and not self.column:
            raise ValueError("method 'column' needs 'column'")
        if self.method == "extrapolation" and not (self.target and self.test):
            raise ValueError("method 'extrapolation' needs 'target' and a 'test' share above 0")
        if self.fold >= self.folds:
            raise ValueError("fold counts from 0 and must be below folds")
        return self


class DataConfig(Strict):
    """Which crystals, from where, and how they are divided."""

    path: str | Annotated[tuple[str, ...], Field(min_length=1)] = ""
    """A file or folder, or several: an id that several have is one crystal with the labels of all."""
    format: str = "auto"
    """An entry of ``cgnn.data.records.READERS``; by default found from the file name."""
    id_column: str | None = None
    structure_column: str | None = None
    cache: str | None = None
    """Folder for prepared graphs; by default ``$CGNN_CACHE`` or ``~/.cache/cgnn``."""
    split: SplitConfig = SplitConfig()

    @property
    def paths(self) -> tuple[str, ...]:
        """The files; none where none is given."""
        if isinstance(self.path, tuple):
            return self.path
        return (self.path,) if self.path else ()


class GraphConfig(Strict):
    """How neighbours are found; all that a stored graph depends on."""

    neighbors: str = "nearest"
    """An entry of ``cgnn.graph.neighbors.NEIGHBORS``."""
    k: int = Field(default=12, ge=1, le=100)
    """Neighbours per atom that set the atom's own cutoff (``nearest``, ``shells``, ``cgcnn``)."""
    reach: float = Field(default=1.25, ge=1, le=3)
    """``nearest``: cutoff of an atom as a multiple of the radius that holds k neighbours."""
    cutoff: float = Field(default=10.0, gt=0, le=30)
    """No neighbour lies beyond it (Å); the radius of ``radius``."""
    tolerance: float = Field(default=0.01, gt=0, le=0.5)
    """``shells``: relative distance within which atoms belong to one shell; ``voronoi``: smallest share of an atom's
    view that a face fills."""
    max_atoms: int = Field(default=10_000, ge=1)
    max_edges: int = Field(default=2_000_000, ge=1)


class ModelConfig(Strict):
    """The network."""

    width: int = Field(default=64, ge=1)
    """Features per atom."""
    depth: int = Field(default=3, ge=0, le=128)
    """Gated convolutions."""
    elements: tuple[str, ...] = ("one_hot", "properties")
    """Entries of ``cgnn.model.embed.ELEMENTS``; their vectors are added."""
    gaussians: int = Field(default=41, ge=2)
    gaussian_range: tuple[float, float] = (0.0, 8.0)
    """Centres of the first and the last Gaussian (Å)."""
    gaussian_width: float | None = Field(default=None, gt=0)
    """Width of a Gaussian (Å); by default the distance of two centres."""
    message_depth: int = Field(default=1, ge=1, le=3)
    """Dense layers through which an edge's message passes before it is summed."""
    edge_updates: bool = False
    """After each convolution the features of edges are updated from their atoms."""
    edge_width: int = Field(default=32, ge=1)
    """Features per edge with ``edge_updates``; without, they are the Gaussians."""
    pair_norm: str = "batch"
    """Normalisation of the gated pair vector, an entry of ``cgnn.model.conv.NORMS``."""
    norm: str = "batch"
    """Normalisation of the summed messages, an entry of ``cgnn.model.conv.NORMS``."""
    activation: str = "softplus"
    residual: bool = True
    remedy: str = "none"
    """What is done against the ills of depth, an entry of ``cgnn.model.remedies.REMEDIES``."""
    remedy_strength: float | None = Field(default=None, ge=0, le=1)
    """From 0, nothing, to 1; by default the remedy's usual strength."""
    pooling: str = "mean"
    """An entry of ``cgnn.model.network.POOLINGS``."""
    descriptors: tuple[str, ...] = ()
    """Entries of ``cgnn.model.descriptors.DESCRIPTORS``: features of whole crystals beside the pooled ones."""
    spread: bool = False
    """Heads of regression targets also learn how large their errors are, crystal by crystal."""
    head: str = "layers"
    """What a head is made of, an entry of ``cgnn.model.heads.NETS``."""
    head_width: int = Field(default=128, ge=1)
    head_depth: int = Field(default=1, ge=0)
    """Hidden layers of a head."""
    trees: int = Field(default=400, ge=1, le=10_000)
    """``head: trees``: their number."""
    leaves: int = Field(default=48, ge=2, le=1024)
    """``head: trees``: leaves of a tree at most."""
    length: float = Field(default=1.5, gt=0)
    """``head: kernel_ridge``: length of the kernel as a multiple of the median distance of two crystals."""
    ridge: float = Field(default=0.001, gt=0)
    """``head: kernel_ridge``: what is added to the diagonal of the kernel matrix, whose elements are 1 there."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the features that are left out: by layers others in each step, by a kernel once, drawn by the seed."""
    hints: HintsConfig | None = None
    """Set by ``transfer.hints``, never by hand."""

    @property
    def is_fitted_at_once(self) -> bool:
        """Whether the heads are trees or a kernel over features beside each other, not layers trained in steps."""
        return self.head != "layers"


class HintsConfig(Strict):
    """A trained network that stays as it is; what it says of a crystal is a hint to the one that learns."""

    model: ModelConfig
    targets: tuple[Target, ...]

    @model_validator(mode="after")
    def _fits(self) -> HintsConfig:
        if self.model.hints is not None:
            raise ValueError("a network with hints of its own can't give hints")
        if not self.names:
            raise ValueError("hints are about whole crystals, and this network's targets are all of atoms")
        return self

    @property
    def names(self) -> list[str]:
        """The targets that give hints: those of whole crystals."""
        return [target.name for target in self.targets if target.level == "crystal"]


class TrainConfig(Strict):
    """How the network is fitted."""

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: str = "one_cycle"
    """An entry of ``cgnn.train.loop.SCHEDULES``."""
    loss: str = "mae"
    """An entry of ``cgnn.model.heads.LOSSES``, for regression targets."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    ema: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the averaged weights; 0 for none."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better validation score after which training stops."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints, beside one at the end of each epoch; by default that one, at most once a second."""
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(default=1, ge=1)
    nodes: int = Field(default=1, ge=1)
    precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true"
    """``bf16-mixed`` is for GPUs: on a CPU the compiled kernels, which know single precision only, are faster."""
    compile: bool = False
    """Let ``torch.compile`` fuse the network's operations. For GPUs, as above; the first step takes half a minute."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; by default as many as the machine has."""
    tensorboard: bool = False


class EnsembleConfig(Strict):
    """In what the members of an ensemble differ, beside their first weights (``cgnn train --members``)."""

    models: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]
    """What a member changes of ``model``, for the members in turn; ``{}`` changes nothing."""


class TransferConfig(Strict):
    """How a fit starts from a stored model.

    Parts are ``embed``, ``convs``, ``edge_updates``, ``descriptors``, ``pool`` and ``heads``, and finer ``convs.0`` or
    ``heads.TARGET``.
    """

    init_from: str
    """Run folder, model file, or the name of one of the package's own; of an ensemble, its first member."""
    take: tuple[str, ...] = ("embed", "convs", "edge_updates", "pool", "heads")
    """Parts whose weights are taken where they fit. Descriptors know one property only, so they are learned anew."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they were taken."""
    slow: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Part -> factor on the learning rate; the finer name counts."""
    hints: bool = False
    """Keep the model, as it is, inside the new one: what it says of a crystal is added to the pooled features."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate per layer below the pooling: the last convolution has it once, the embedding
    depth + 1 times."""


class PUConfig(Strict):
    """How classifiers learn from positive crystals and from such of which nothing is known (``cgnn pu fit``)."""

    column: str = "theoretical"
    """Column that tells which crystals are positive."""
    labels: str = "auto"
    """How it tells, an entry of ``cgnn.train.pu.labels.LABELS``; by default found from the column's name."""
    way: str = "bagging"
    """An entry of ``cgnn.train.pu.PU_WAYS``."""
    bags: int = Field(default=50, ge=1)
    ratio: float = Field(default=1.0, gt=0)
    """Unlabelled crystals drawn for each bag, as a multiple of the training positives."""
    holdout: float = Field(default=0.2, gt=0, lt=1)
    """Share of the positives that no bag sees, the same for all; they tell the recall."""
    element: str | None = None
    """Instead of a share: all positives with this element are held out, and no unlabelled crystal with it is drawn."""
    later: str | None = None
    """Column that tells (true) which positives became known later: they count as unlabelled in every bag."""
    val: float = Field(default=0.1, gt=0, le=0.5)
    """Share of a bag, of its positives and of its unlabelled crystals alike, that chooses the best epoch."""
    duplicates: Literal["keep", "set_aside"] = "keep"
    """What becomes of unlabelled crystals that are the same crystal as a positive."""
    stop_when: float | None = Field(default=None, gt=0)
    """Stop after so many bags that the standard error of a score, in the mean over the unlabelled crystals, is not
    above this."""
    together: int = Field(default=25, ge=1)
    """Bags that are fitted at once where they are batched."""
    retries: int = Field(default=1, ge=0)
    """How often a bag whose process died is taken up again."""
    prior: float | None = Field(default=None, gt=0, lt=1)
    """``nnpu``: share of positives among the unlabelled crystals."""
    spies: float = Field(default=0.15, gt=0, lt=1)
    """``spies``: share of a bag's positives that are hidden among its unlabelled crystals in the first step."""
    spy_recall: float = Field(default=0.9, gt=0, lt=1)
    """``spies``: unlabelled crystals are taken for negatives below the score that so many of the spies exceed."""
    seed: int = Field(default=0, ge=0)
    """Seed of the hold-out and of the draws; that of the weights is ``train.seed``."""


class DepthConfig(Strict):
    """What a study of depth compares (``cgnn depth``)."""

    depths: Annotated[tuple[Annotated[int, Field(ge=1, le=128)], ...], Field(min_length=1)] = (1, 2, 4, 8, 16)
    remedies: Annotated[tuple[str, ...], Field(min_length=1)] = ("none", "residual")
    """Entries of ``cgnn.model.remedies.REMEDIES``; ``none`` is without any residual, the others are with it."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds of weights and order; the split is the same for all."""
    fixed: Literal["width", "parameters"] = "width"
    """What all networks have in common with the one of ``model``; for ``parameters`` the width follows the depth."""
    crystals: int = Field(default=100, ge=1)
    """Crystals with inequivalent sites on which the layers are measured."""


class Config(Strict):
    """Everything that defines a run."""

    targets: tuple[Target, ...] = Field(min_length=1)
    data: DataConfig = DataConfig()
    graph: GraphConfig = GraphConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    ensemble: EnsembleConfig | None = None
    transfer: TransferConfig | None = None
    pu: PUConfig | None = None
    depth: DepthConfig | None = None

    @model_validator(mode="after")
    def _fits(self) -> Config:
        names = [target.name for target in self.targets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two targets share the name {twice[0]!r}")
        for target in self.targets:
            taken = sorted(target.beside().intersection(names))
            if taken:
                raise ValueError(f"the target name {taken[0]!r} is taken by a column of {target.name!r} in tables")
        if self.model.hints is not None and not (self.transfer and self.transfer.hints):
            raise ValueError("model.hints is set by transfer.hints: true, never by hand")
        for number, changes in enumerate(self.ensemble.models if self.ensemble else ()):
            if "hints" in changes:
                raise ValueError(f"ensemble.models.{number}: hints are set by transfer.hints: true, never by hand")
            try:
                self.of_member(number)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return self

    @property
    def alone(self) -> Config:
        """The settings of one network that is no member of an ensemble."""
        return self.model_copy(update={"ensemble": None})

    def of_member(self, number: int) -> Config:
        """Return the settings with which a member of an ensemble, counted from 0, could be trained alone."""
        if self.ensemble is None:
            return self
        place = number % len(self.ensemble.models)
        values = {**self.model.model_dump(), **self.ensemble.models[place]}
        model = build_as(ModelConfig, values, source=f"ensemble.models.{place}")
        return self.alone.model_copy(update={"model": model})

    @property
    def epochs(self) -> int:
        """How often the training part is gone through at most: once where heads are fitted at once."""
        return 1 if self.model.is_fitted_at_once else self.train.epochs


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file and apply overrides such as ``model.depth=8``.

    Raises:
        ConfigError: No such file, no YAML, an unknown key, a wrong type or an impossible pair;
            the message holds the dotted path and the nearest spelling.
    """
    return load_as(Config, path, overrides)


def build(values: Any, overrides: Iterable[str] = (), source: str = "settings") -> Config:
    """Return checked settings from plain values (dicts, lists, numbers, text)."""
    return build_as(Config, values, overrides, source)
