"""The stages of `gpu.sh`, each of which ends in time whatever the GPU does."""
