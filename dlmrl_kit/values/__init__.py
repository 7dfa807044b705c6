"""Value models: small modules, trained beside the policy, that say what a token of a state is worth."""
