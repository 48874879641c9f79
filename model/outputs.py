"""The names of what a model can give. `VideoClassifier.compute` says what each is."""

LOGITS = "logits"
FEATURES = "features"
OUTPUTS = (LOGITS, FEATURES, "tokens", "hidden_states", "attentions")
