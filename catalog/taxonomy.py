"""The vocabulary: every classifying word with the definition that the site and the command line show."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Word(StrEnum):
    """A word of the vocabulary: a string equal to what is written in entry files, with its definition."""

    definition: str

    def __new__(cls, value: str, definition: str = "") -> Self:
        word = str.__new__(cls, value)
        word._value_ = value
        word.definition = definition
        return word

    @classmethod
    def words(cls) -> list[str]:
        """All words, in the order in which they are defined."""
        return [str(word) for word in cls]

    @classmethod
    def definitions(cls) -> dict[str, str]:
        """Word to definition, in the order in which they are defined."""
        return {str(word): word.definition for word in cls}


class Category(Word):
    """Where a method makes its change; also the folder of its entry and of its implementation."""

    SELECTIVE = (
        "selective",
        "Trains a chosen part of the pretrained parameters (some tensors, rows or entries) and adds none.",
    )
    ADDITIVE = (
        "additive",
        "Adds small trained modules or vectors to the computation and leaves the pretrained weights frozen.",
    )
    PROMPT = (
        "prompt",
        "Changes what the model is given: tokens, prefixes or pixels join the input, keys or values.",
    )
    REPARAMETERIZED = (
        "reparameterized",
        "Writes the change of a pretrained weight in few parameters, mostly to be folded into it.",
    )
    HYBRID = ("hybrid", "Combines mechanisms of several of the other categories, or searches over them.")
    CONTEXT = (
        "context",
        "No tuning category: studies, benchmarks and misplaced items, kept to account for the lists.",
    )


class Kind(Word):
    """What a paper is."""

    METHOD = ("method", "Proposes a way to adapt a pretrained model that can be trained or applied.")
    FRAMEWORK = ("framework", "Proposes a library, or a design space or search over existing methods.")
    FOUNDATION_MODEL = (
        "foundation-model",
        "Presents a pretrained model that methods adapt, not a way to adapt it.",
    )
    STUDY = ("study", "Examines existing models or methods without proposing a new one.")
    OFF_TOPIC = ("off-topic", "Is on a list of tuning papers, but is not about parameter-efficient tuning.")
    BENCHMARK = ("benchmark", "Presents a data set or an evaluation.")


class Modality(Word):
    """The kind of pretrained model a paper adapts."""

    LLM = ("llm", "Language models: encoders, decoders and encoder-decoders over text.")
    VFM = ("vfm", "Vision foundation models: image classifiers, detectors and segmenters.")
    VLM = ("vlm", "Vision-language models: joint encoders such as CLIP, captioning and answering models.")
    VGM = ("vgm", "Visual generation models: diffusion models for images and video.")
    AUDIO = ("audio", "Speech and audio models.")
    MFM = ("mfm", "Multimodal foundation models over more than two kinds of input.")


class Backbone(Word):
    """The small frozen model on which a method's claims are measured."""

    DECODER = ("decoder", "A causal language model.")
    ENCODER = ("encoder", "A bidirectional text encoder with a classification or masked-token head.")
    ENCODER_DECODER = ("encoder-decoder", "A text-to-text transformer with cross attention.")
    MULTITASK_DECODER = ("multitask-decoder", "A causal language model on several tasks at once.")
    MULTITASK_ENCODER_DECODER = ("multitask-encoder-decoder", "A text-to-text transformer on several tasks at once.")
    VIT = ("vit", "A vision transformer over image patches.")
    MLP = ("mlp", "A stack of linear layers: enough for methods defined on a single weight matrix.")
    CONVNET = ("convnet", "A convolutional image classifier.")
    CLIP = ("clip", "A dual encoder that compares images and texts in one space.")
    VLM = ("vlm", "An image encoder that feeds a language model.")
    UNET = ("unet", "A convolutional denoiser of a diffusion model, with attention to a text.")
    DIT = ("dit", "A transformer denoiser of a diffusion model.")
    SPEECH = ("speech", "A speech encoder trained with connectionist temporal classification.")


class Strength(Word):
    """How the learned change answers to one coefficient c, measured at the adapted module."""

    LINEAR = (
        "linear",
        "The change at c is c times the change at 1; c = 0 is the base model and c = -1 the opposite.",
    )
    ANTISYMMETRIC = (
        "antisymmetric",
        "c = 0 is the base model and c = -1 the opposite of c = 1, but the size is not proportional to c.",
    )
    NONLINEAR = ("nonlinear", "A coefficient exists, but the change is not proportional to it.")
    NONE = ("none", "There is no coefficient that scales the learned change.")


class Status(Word):
    """Whether a paper still stands."""

    CURRENT = ("current", "Stands as published.")
    WITHDRAWN = ("withdrawn", "Was withdrawn or retracted by its authors or its venue.")
    SUPERSEDED = ("superseded", "Was replaced by a later paper of its authors, named in superseded_by.")


class Fidelity(Word):
    """What the mechanism in an entry, and hence its implementation, rests on."""

    PAPER = ("paper", "The equations of the paper.")
    OFFICIAL_CODE = ("official-code", "The authors' code, read beside the paper.")
    LIBRARY = ("library", "The paper and the code of a library that ships the method.")
    RECONSTRUCTION = (
        "reconstruction",
        "Neither paper nor code could be read in full; what was filled in is said in the note.",
    )


class Subcategory(Word):
    """The mechanism within a category."""

    BIAS = ("bias", "Trains or adds bias vectors.")
    NORM = ("norm", "Trains the gains and biases of normalization layers.")
    UNSTRUCTURED_MASK = (
        "unstructured-mask",
        "Chooses single entries of the weight matrices to train or to keep.",
    )
    GRADIENT_MASK = ("gradient-mask", "Masks the gradient, so that only some entries move in a step.")
    LAYER_FREEZING = ("layer-freezing", "Freezes whole layers, by a rule or while training goes on.")
    COMPONENT_SELECTION = (
        "component-selection",
        "Trains chosen kinds of component, such as one projection or a head.",
    )
    EMBEDDING_ROWS = ("embedding-rows", "Trains chosen or new rows of the token embedding table.")
    SERIAL_ADAPTER = ("serial-adapter", "Inserts a bottleneck after a sublayer, in line with it.")
    PARALLEL_ADAPTER = ("parallel-adapter", "Adds a bottleneck branch beside a sublayer or block.")
    ADAPTER_FUSION = ("adapter-fusion", "Learns to combine the outputs of several trained adapters.")
    MERGING = ("merging", "Averages or otherwise merges the weights of several trained adapters.")
    MIXTURE_OF_EXPERTS = (
        "mixture-of-experts",
        "Routes each input, token or task over several small modules.",
    )
    HYPERNETWORK = ("hypernetwork", "Generates the weights of adapters with a shared network.")
    ADAPTER_PRUNING = ("adapter-pruning", "Drops or sparsifies adapters.")
    SCALING = ("scaling", "Multiplies activations entry by entry with learned vectors.")
    SIDE_NETWORK = ("side-network", "Runs a small network beside the backbone, fed by its features.")
    FEATURE_ADAPTER = ("feature-adapter", "Adapts the final features of a frozen encoder.")
    CACHE_ADAPTER = ("cache-adapter", "Adds a key-value cache built from the few training examples.")
    ACTIVATION_STEERING = ("activation-steering", "Adds a direction to the residual stream.")
    QUERY_TRANSFORMER = (
        "query-transformer",
        "Bridges two frozen models with a transformer over learned queries.",
    )
    CROSS_ATTENTION = (
        "cross-attention",
        "Adds an attention over another input, such as an image or a first frame.",
    )
    SPECIAL_TOKENS = ("special-tokens", "Changes only the hidden states of special tokens.")
    SOFT_PROMPT = ("soft-prompt", "Trains vectors that join the input embeddings.")
    GENERATED_PROMPT = (
        "generated-prompt",
        "Computes or picks the prompt for each input with a small network or layer.",
    )
    PROMPT_TRANSFER = ("prompt-transfer", "Starts or composes a prompt from prompts of other tasks.")
    PREFIX = ("prefix", "Trains keys and values, or vectors that become them, in the layers' attention.")
    GATED_PREFIX = ("gated-prefix", "Adds a prefix through a gate that starts closed.")
    VISUAL_PROMPT = ("visual-prompt", "Trains pixels around or on the image, or tokens among its patches.")
    DISCRETE_PROMPT = (
        "discrete-prompt",
        "Searches for, or composes from rules, a prompt made of real tokens.",
    )
    LOW_RANK = (
        "low-rank",
        "Writes the weight change as a product of thin matrices, or as one small shared block.",
    )
    RANDOM_PROJECTION = ("random-projection", "Trains small vectors or matrices between frozen random bases.")
    ORTHOGONAL = (
        "orthogonal",
        "Multiplies the weight by rotations, reflections or near-orthogonal transforms.",
    )
    SPECTRAL = ("spectral", "Trains coefficients in a fixed basis: Fourier, circulant or singular vectors.")
    KRONECKER = ("kronecker", "Writes the weight change with Kronecker products.")
    HADAMARD = ("hadamard", "Writes the weight change as an elementwise product of low-rank matrices.")
    TENSOR_DECOMPOSITION = (
        "tensor-decomposition",
        "Factors the pretrained weights and trains some of the factors.",
    )
    PREFIX_AND_ADAPTER = ("prefix-and-adapter", "Combines prefixes with adapters, with or without gates.")
    BIAS_AND_SCALE = ("bias-and-scale", "Combines trained biases with scales, norms or gates.")
    SEARCH = ("search", "Searches over where to put which module and how large.")
    STRUCTURED_PRUNING = (
        "structured-pruning",
        "Removes parts of the backbone while a small module is trained.",
    )
    PARTIAL_TUNING = ("partial-tuning", "Combines added modules with a trained part of the backbone.")
