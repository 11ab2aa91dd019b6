"""Who issues the tokens of end users, and for whom. Apart from `tokens`: a verifier needs no signing library."""

ISSUER = "https://nourish.local"
AUDIENCE = "nourish"
