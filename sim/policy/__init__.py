"""An engine's side of its policies: how they are made, what they see, who watches them, what vLLM is told."""
