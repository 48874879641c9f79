"""An export -> models of a Triton Inference Server repository."""
