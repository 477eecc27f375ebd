"""Names of forms, backends, directions and commits, as they stand in records, tables and plots."""

NAIVE_C = "naive, C-channel mask"
NAIVE_1 = "naive, 1-channel mask"
COMPILED = "naive, 1-channel mask, torch.compile"
PLAIN = "plain convolution"
HYBRID = "hybrid of dense convolutions"
GPU_BACKENDS = ("triton", "cuda")  # in the order of "auto"
FORWARD, TRAINING = "forward", "forward + backward"
STEP = "training step"  # of the whole network
#: A commit with uncommitted changes ends so; one that cannot be told is called so.
DIRTY, UNKNOWN = "-dirty", "unknown"
