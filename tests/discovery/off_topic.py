"""Papers that share words with parameter-efficient tuning and are about something else; all made up."""

from __future__ import annotations

OFF_TOPIC = [
    (
        "LoRa and LoRaWAN for Long Range Internet of Things Networks",
        "We evaluate the spreading factor and the duty cycle of LoRa end devices that reach a gateway over ten miles.",
        ("cs.NI",),
    ),
    (
        "LORA: A Long-Range Radio Testbed",
        "An LPWAN testbed with forty gateways measures packet loss of chirp spread spectrum under interference.",
        ("cs.NI", "eess.SP"),
    ),
    (
        "Adaptive Data Rate for LoRA Networks",
        "With a capital letter by mistake, LoRA here is the radio: gateways, end devices, IoT, long range, LPWAN.",
        ("cs.NI",),
    ),
    (
        "Prompt Emission of Gamma-Ray Bursts Revisited",
        "The prompt emission of forty bursts is fitted with a synchrotron model, and its spectral lag is measured.",
        ("astro-ph.HE",),
    ),
    (
        "Prompt Neutron Spectra of Fission Fragments",
        "We tune the parameters of a cascade model to the prompt neutron multiplicity of uranium.",
        ("nucl-th",),
    ),
    (
        "Production of prompt charm mesons in proton collisions",
        "The cross section of prompt and non-prompt mesons is measured with the full data set at 13 TeV.",
        ("hep-ex",),
    ),
    (
        "Structure of an Adaptor Protein Complex",
        "The adapter protein binds a kinase, and freezing the sample in vitreous ice resolves both conformations.",
        ("q-bio.BM",),
    ),
    (
        "Fast Adapter Trimming of Sequencing Reads",
        "A tool removes adapters from short sequencing reads by bit-parallel alignment, with few parameters to choose.",
        ("q-bio.GN",),
    ),
    (
        "A Power Adapter with a Planar Transformer",
        "The adapter is 95 % efficient: the transformer's windings and the bottleneck of its cooling are optimized.",
        ("eess.SY",),
    ),
    (
        "Detecting BGP Prefix Hijacks",
        "We watch announcements of each IP prefix and train a small classifier on paths between autonomous systems.",
        ("cs.NI", "cs.CR"),
    ),
    (
        "Parallel Prefix Sums on Many Cores",
        "A prefix sum over a segmented array is computed in one pass; tuning of block sizes is automatic.",
        ("cs.DC", "cs.DS"),
    ),
    (
        "Low-Rank Matrix Completion from Noisy Entries",
        "Exact recovery of a low rank matrix is shown for nuclear norm minimization with few observed entries.",
        ("math.OC", "stat.ML"),
    ),
    (
        "Low-Rank Approximation of Kernel Matrices",
        "We bound the error of Nystrom sampling for a low-rank approximation and compare landmarks.",
        ("math.NA", "cs.LG"),
    ),
    (
        "Training a Language Model from Scratch on Clinical Notes",
        "We pre-train a transformer on ten million notes and fine-tune all of it on downstream tasks.",
        ("cs.CL",),
    ),
    (
        "Chain-of-Thought Prompting for Arithmetic",
        "Prompt engineering with worked examples improves large language models on word problems without training.",
        ("cs.CL", "cs.AI"),
    ),
    (
        "Orthogonal Time Frequency Space Modulation",
        "Orthogonal waveforms are tuned for doubly dispersive channels; a frozen pilot pattern reduces overhead.",
        ("cs.IT", "eess.SP"),
    ),
    (
        "The Adapter Pattern in Object-Oriented Code Bases",
        "We mine repositories for the adapter and decorator patterns and study how often they are misused.",
        ("cs.SE",),
    ),
    (
        "Fine-Tuning in Supersymmetric Models",
        "The fine-tuning of the Higgs mass restricts the model's parameters; a prompt search at colliders follows.",
        ("hep-ph",),
    ),
]
