"""From a layer's name to its record: inputs, forms, the check against the reference, time and memory."""
