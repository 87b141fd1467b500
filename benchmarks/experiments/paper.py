"""What the paper prints of its four experiments, in per cent where it is accuracy. CIFAR-10; its lin is ours + 1 (one more block in front)."""

ORIGINAL = 86.7

CROSS_HOUT_2 = {"Food-101": 80.2, "ImageNet": 80.0, "random": 71.3}
"""Figure 5a at lin = 5, hout = 2."""

SKIP_0_5 = 61.0
COMPENSATION_OVER_RANDOM, COMPENSATION_OVER_SKIP = 58.0, 78.0
HOUT_4, HOUT_5 = 83.3, 82.4

LINKS_HOUT = 4
LINKS = {"normal": 82.7, "rank 25": 81.5, "rank 5": 73.8, "links only": 58.8}
"""Figure 6 at [0, 1, 4, 5]."""

SKIP_1_5 = {"normal": 83.3, "reduced": 80.3}
SKIP_MS, ORIGINAL_MS = 1.4, 2.0
MOBILENET = 84.5
SELECTED_AVERAGE, SELECTED_RATIO = 84.4, 1.4
REWARD_ITERATION = 4
SKIPPED_PARAMETERS = 1.88e6
