"""What is measured in the peers' environment. Nothing here may import Perdure."""
