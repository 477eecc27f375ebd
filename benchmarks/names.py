"""Names of forms, passes and commits, as they stand in records, tables and plots."""

NAIVE_C = "naive, C-channel mask"
NAIVE_1 = "naive, 1-channel mask"
COMPILED = "naive, 1-channel mask, torch.compile"
PLAIN = "plain convolution"
HYBRID = "hybrid of dense convolutions"
FORWARD, TRAINING = "forward", "forward + backward"
#: A commit with uncommitted changes ends so; one that cannot be told is called so.
DIRTY, UNKNOWN = "-dirty", "unknown"
