"""Names of forms and passes, as they stand in records, tables and plots."""

NAIVE_C = "naive, C-channel mask"
NAIVE_1 = "naive, 1-channel mask"
COMPILED = "naive, 1-channel mask, torch.compile"
PLAIN = "plain convolution"
HYBRID = "hybrid of dense convolutions"
FORWARD, TRAINING = "forward", "forward + backward"
