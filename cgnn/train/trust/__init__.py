"""How far a prediction can be trusted: estimated, calibrated, evaluated."""
