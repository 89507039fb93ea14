"""Laws: likelihoods of observations, priors of weights, and the predictive law of draws."""
