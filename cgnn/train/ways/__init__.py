"""Ways of learning from more than the labels at hand; each a function or a method around ``fit``."""
