"""The pages whose comparing sentences are tied to runs."""

from __future__ import annotations

README, RESULTS = "README.md", "data/results/README.md"
N07, N08, N09, N10, N11 = (
    f"notebooks/{stem}.ipynb"
    for stem in (
        "07_tiny_lm_maths",
        "08_tiny_lm_code",
        "09_lora_llm",
        "10_measuring_diversity",
        "11_ablations_and_limits",
    )
)
PAGES = (README, RESULTS, N07, N08, N09, N10, N11)
