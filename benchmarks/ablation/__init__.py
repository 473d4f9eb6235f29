"""What each constant of the predictive policy is worth on days that it was not tuned to."""
