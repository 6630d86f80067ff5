"""What is measured in Perdure's own environment: Perdure, and the least that the same durability costs without it."""
