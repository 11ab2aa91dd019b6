"""Kinds of words in the names of foods, each in the form that `words.tokens` gives."""

from services.nutrition.words import words_of

# Of a cook's name: words that say nothing about which food it is.
NOISE = words_of(
    "fresh freshly organic ripe large medium small extra-large good quality best favorite homemade store "
    "bought finely coarsely roughly thinly thickly lightly packed heaping level optional peeled chopped "
    "diced sliced minced grated shredded crushed crumbled halved quartered cubed trimmed washed rinsed "
    "drained thawed softened melted room temperature uncooked raw warm cold hot seeded pitted cored free- "
    "range prepared your additional extra frozen canned tinned dried cooked boneless skinless handful "
    "torn rough loose fine coarse cut bite size heirloom young mini farm grass fed pasture raised natural "
    "pure premium stemmed skin bone crusty day old style wild local kosher"
)
# How a food is cut, at the end of a name: "salmon fillet" is salmon.
CUTS = words_of("fillet half floret stalk leaf sprig clove kernel piece chunk slice strip cube wedge head bulb")
# Of those, parts of a plant that are another food than its fruit.
PARTS = words_of("leaf sprig clove bulb head stalk")
# States: a food in one that the line does not name is another food.
COOKED = words_of(
    "cooked boiled baked fried roasted broiled grilled stewed steamed sauteed microwaved braised simmered "
    "toasted scrambled poached reheated heated glazed creamed rotisserie candied scalloped stir"
)
STATES = {
    "cooked": COOKED,
    "canned": words_of("canned bottled"),
    "frozen": words_of("frozen"),
    "dried": words_of("dried dehydrated powder freeze sulfured"),
}
# Words that make another food of it: onion soup is no onion.
DISH = words_of(
    "soup sandwich salad babyfood baby pie sauce juice dip cake cookie casserole burrito pizza dressing "
    "candy chip cracker cereal bread drink beverage shake pudding stuffed filled breaded coated gravy mix "
    "dessert entree restaurant fast imitation meatless substitute flavored sweetened nectar syrup oil "
    "butter flour seed leaf peel skin green pickled concentrate fat sprouted egg paste roll spread snack "
    "ring puff tempura omelet quiche souffle yogurt replacement wild industrial milk cheese powdered meal "
    "dinner topping water germ bran relish jam"
)
# Foods of one place, seldom meant.
REGIONAL = words_of("navajo hopi alaska native indian southwest apache shoshone")
# What USDA adds to say "nothing particular".
NEUTRAL = words_of(
    "raw nfs ns form type variety average year round commercial commercially all regular plain whole "
    "unprepared uncooked enriched unenriched mature includes fluid ripe without added fresh unsalted "
    "unspecified cultured"
)
# What USDA may put before the name: "Spices, cumin seed".
CLASSES = words_of(
    "spice nut seed fish crustacean mollusk oil cheese beverage sauce soup syrup cereal sugar bean pepper "
    "egg milk bread snack candies leavening agent alcoholic cracker cookie squash melon cream"
)
