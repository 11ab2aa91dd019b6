"""Foods and what 100 g of each contains: USDA FoodData Central, and the foods users add for themselves."""
