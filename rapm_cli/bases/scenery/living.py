"""Word lists: people and animals, each in a plausible place."""

from rapm_cli.bases.scenery.kinds import CANDID, DRY, INDOORS, OPEN_AIR, STUDIO, TOWN, WINTER, Kind

ADULTS = (
    "a young woman | a young man | an old woman | an old man | a middle-aged woman | a middle-aged man"
    " | a bearded man | a woman with curly hair | a man with grey hair | a woman with short hair"
    " | a woman with braided hair | a tall man | a woman with freckles | a man with glasses"
)
CLOTHES = (
    " | | in a red coat | in a white shirt | in a denim jacket | in a wool sweater | in a yellow raincoat"
    " | in a dark suit | in a straw hat | in a striped scarf | in a green jumper | in work clothes"
)
PORTRAIT = "a portrait | a close-up portrait | a half-length portrait | a candid photo | an editorial portrait"
WILDLIFE = "a wildlife photo | a photo | a close-up | a telephoto shot | a low-angle shot | a wide shot"
PET = "a photo | a close-up | a portrait | a snapshot | a low-angle photo"
MACRO = "a macro photo | a close-up | an extreme close-up | a photo"

PEOPLE = (
    Kind(  # faces
        (
            (ADULTS, CLOTHES, " | looking at the camera | looking away | laughing | smiling gently | deep in thought"),
            (
                "an elderly | a young | a smiling | a serious | a tired | a proud",
                "fisherman | baker | farmer | nurse | violinist | carpenter | firefighter | blacksmith | gardener"
                " | beekeeper | potter | sailor | dancer | chef | mechanic | librarian | shepherd | tailor | painter",
                " | in profile | with folded arms | looking at the camera | looking down | looking over one shoulder",
            ),
        ),
        f"{STUDIO} | {INDOORS} | a plain grey background | a white background | a dark background",
        PORTRAIT,
    ),
    Kind(  # out of doors
        (
            (
                ADULTS,
                CLOTHES,
                "walking a dog | riding a bicycle | reading on a bench | eating an ice cream | carrying flowers"
                " | looking at a phone | feeding pigeons | playing the guitar | waiting under a tree",
                "in a park | by a fountain | near a river | in a quiet square | beside a canal",
            ),
            (
                "a man | a woman | a couple | two friends | a hiker | three hikers | a group of hikers",
                "resting | walking | standing | taking photos | looking at a map",
                "on a mountain trail | in a pine forest | on a grassy ridge | beside a mountain lake"
                " | on a coastal path | near the edge of a cliff | on a wooden footbridge",
            ),
            (
                "a man | a woman | a family | a boy | a girl | two children | an old couple | three friends",
                "walking | standing | running | sitting | resting",
                "on a sandy beach | at the water's edge | on a pebble beach | among the dunes | on a rocky shore",
                " | with a dog | with a kite | with a blue towel",
            ),
            (
                "a surfer | two surfers | a woman on a surfboard | a man on a surfboard | a boy on a bodyboard",
                "riding a wave | paddling out | waiting for a wave | tumbling",
                "off a sandy beach | near a rocky point | below a cliff | in a small bay | in green water",
            ),
            (
                "a boy | a girl | a little girl | a little boy | two children | a father and son"
                " | a mother and daughter",
                "flying a kite | chasing bubbles | picking apples | holding a balloon | eating watermelon"
                " | playing with a puppy | looking for insects",
                "in a garden | in an orchard | on a lawn | in a backyard | beside a wooden fence",
            ),
            (
                "a farmer | an old farmer | a woman | a young man | two farm workers",
                "loading hay | driving a tractor | leading a horse | carrying a basket | repairing a fence",
                "on a hillside farm | in a wide valley | near a red barn | at the edge of a field",
            ),
            (
                "a man | a woman | a young man | a young woman | a teenager | an athlete",
                "playing tennis | jumping over a hurdle | throwing a frisbee | kicking a football"
                " | swinging a baseball bat | riding a skateboard | stretching before a run",
                " | in front of spectators | near a fence | in a city park | with trees in the background",
            ),
        ),
        OPEN_AIR,
        CANDID,
    ),
    Kind(  # in the snow
        (
            (
                "a skier | two skiers | a snowboarder | a skier in a blue jacket | a skier in an orange jacket",
                "going down | resting on | crossing",
                "a snowy slope | a steep mountainside | a wide snowfield | a groomed ski run",
                " | below tall peaks | with pine trees behind",
            ),
            (
                "a man | a woman | two children | a family | a couple | a girl in a red hat | an old man",
                "building a snowman | pulling a sledge | walking a dog | throwing snowballs | clearing a path",
                "in a snowy park | in front of a wooden house | at the edge of a forest | on a white hill",
            ),
        ),
        WINTER,
        CANDID,
    ),
    Kind(  # in town
        (
            (
                ADULTS,
                CLOTHES,
                "crossing a street | waiting at a bus stop | walking past shop windows | standing in a doorway"
                " | leaning on a railing | sitting outside a cafe | pushing a bicycle | climbing a stone staircase",
                " | in an old town | in a big city | in a narrow lane | in a port town",
            ),
            (
                "a street musician | a flower seller | a bicycle courier | a juggler | two old friends"
                " | a crowd of people | a group of tourists | a woman with shopping bags | a man with a suitcase",
                "in a busy market | on a crowded street | outside a train station | in a cobbled square"
                " | under a stone arcade | on a bridge | at a street corner",
            ),
        ),
        TOWN,
        f"{CANDID} | a street photo",
    ),
    Kind(  # at home and at work
        (
            (
                ADULTS,
                CLOTHES,
                "reading a book | drinking coffee | writing a letter | talking on the phone | knitting"
                " | using a laptop | daydreaming",
                "in an armchair | on a sofa | by a window | at a wooden table | in a small cafe | on a train",
            ),
            (
                "a chef | a baker | a man | a woman | a grandmother | a father and daughter | two cooks | a couple",
                "kneading dough | chopping vegetables | decorating a cake | stirring a pot | making pasta"
                " | rolling out pastry | washing dishes",
                "in a small kitchen | in a bright kitchen | in a farmhouse kitchen | in a busy kitchen",
            ),
            (
                "a young | a middle-aged | an elderly | a bearded | a smiling",
                "potter shaping a bowl | carpenter planing a board | luthier repairing a violin | painter at an easel"
                " | tailor cutting cloth | watchmaker at a bench | sculptor carving stone | cobbler mending a boot"
                " | weaver at a loom | bookbinder sewing pages",
                "in a workshop | in a cluttered studio | in an old workshop | in a small studio",
                " | surrounded by tools",
            ),
        ),
        INDOORS,
        CANDID,
    ),
    Kind(  # on stage
        (
            (
                "a ballet dancer | two dancers | a pianist | a cellist | a violinist | a jazz band | a string quartet"
                " | a choir | a drummer | a saxophone player | an actor in a mask | a magician",
                "performing | rehearsing | bowing",
                "on a small stage | in an old theatre | in a concert hall | in a smoky club | before a red curtain",
            ),
        ),
        "stage lights | a warm spotlight | dim blue light | backlit by spotlights | deep shadows | footlights",
        CANDID,
    ),
)

ANIMALS = (
    Kind(  # pets at home
        (
            (
                "a tabby cat | a black cat | a ginger kitten | a white cat | a grey cat | two kittens"
                " | a calico cat | a fluffy long-haired cat",
                "sleeping | sitting | stretching | curled up | lying",
                "on a windowsill | on a wooden chair | on a sofa | on a pile of books | in a cardboard box"
                " | on a striped blanket | next to a houseplant | beside a radiator | on a bed",
            ),
            (
                "a brown puppy | a golden retriever | a border collie | a small white dog | an old hound"
                " | a dachshund | a spotted dog | a black labrador | two dogs",
                "lying | sleeping | sitting | waiting",
                "on a rug | on a sofa | by the front door | on a wooden floor | in a wicker basket | under a table",
                " | with a tennis ball | next to a pair of boots",
            ),
        ),
        INDOORS,
        PET,
    ),
    Kind(  # tame, out of doors
        (
            (
                "a brown dog | a golden retriever | a border collie | a husky | a small terrier | two dogs",
                "running | jumping | playing | standing | waiting",
                "on a beach | in a meadow | in a park | in shallow water | on a forest path | in fallen leaves",
                " | with a stick | with a red ball",
            ),
            (
                "a brown cow | a herd of cows | a white horse | two horses | a flock of sheep | a lamb | a donkey"
                " | a goat | a chestnut foal",
                "grazing | standing | resting | walking",
                "in a green pasture | beside a stone wall | on a hillside | near a wooden fence | under an oak tree"
                " | in front of a barn",
            ),
            (
                "a rooster | three hens | a hen with chicks | a family of ducks | two geese | a piglet | a turkey",
                "walking across | standing in | resting in",
                "a farmyard | an orchard | a muddy yard | a kitchen garden",
                " | beside a water trough | near a hay cart",
            ),
        ),
        OPEN_AIR,
        "a photo | a close-up | a snapshot | a low-angle photo | a wide shot",
    ),
    Kind(  # wild, where rain falls
        (
            (
                "a red fox | a deer | a stag | a brown bear | a grey wolf | a wild boar | a badger | a lynx"
                " | a doe with her fawn",
                "standing | resting | walking | looking up",
                "in a birch forest | in a pine forest | at the edge of a clearing | among ferns"
                " | beside a fallen log | on a mossy slope | by a forest stream",
            ),
            (
                "a squirrel | a chipmunk | a hedgehog | a rabbit | a field mouse | a hare",
                "sitting | eating | crouching | listening",
                "in the grass | under a hedge | among fallen leaves | near a tree stump | in clover | beside a fern",
            ),
            (
                "a mountain goat | an ibex | a marmot | a golden eagle | a chamois | a llama | two alpacas",
                "standing | resting",
                "on a rocky ledge | on a high plateau | among boulders | on a steep slope | above a deep valley",
            ),
            (
                "a heron | two swans | a pelican | a flock of flamingos | a crane | a family of ducks | an egret",
                "standing | preening | resting",
                "at the edge of a lake | in a quiet marsh | beside tall reeds | in a shallow lagoon | by a slow river",
                " | with ripples all around | reflected in the water",
            ),
            (
                "a robin | a blue tit | a sparrow | a goldfinch | a woodpecker | an owl | a raven | a cardinal"
                " | a magpie | a kingfisher",
                "perched | resting | ruffling its feathers",
                "on a bare branch | on a fence post | on an old stump | on a mossy branch | on a blossoming branch",
            ),
            (
                "a toucan | a scarlet macaw | two parrots | a tree frog | a sloth | a chameleon | an iguana",
                "resting | climbing",
                "on a branch | on a vine | among broad leaves | high in a rainforest tree",
            ),
        ),
        OPEN_AIR,
        WILDLIFE,
    ),
    Kind(  # on dry plains
        (
            (
                "a lion | a lioness with two cubs | a herd of zebras | a giraffe | two giraffes | an elephant"
                " | an elephant and its calf | a cheetah | a rhinoceros | a herd of antelopes | two ostriches",
                "resting | standing | walking",
                "near a waterhole | on the open savanna | beside a river | on a dusty plain | in tall yellow grass",
                " | with birds overhead | with acacias behind | with hills in the distance",
            ),
        ),
        DRY,
        WILDLIFE,
    ),
    Kind(  # in the cold
        (
            (
                "a polar bear | two polar bears | a seal | a walrus | an arctic fox | an arctic hare | a snowy owl",
                "resting | sleeping | looking out",
                "on the snow | on a snowy shore | on the frozen tundra | near a frozen bay",
                " | with mountains behind | with cracked ice around",
            ),
            (
                "a penguin | a colony of penguins | two penguins | a penguin with its chick",
                "standing | waddling | resting",
                "on the ice | on a snowy shore | near an iceberg | on a pebble beach",
            ),
            (
                "a grey wolf | a reindeer | a herd of reindeer | a snow leopard | a red fox | an elk | two bison",
                "standing | walking | resting",
                "in deep snow | on a snowy slope | in a white birch forest | beside a frozen stream",
            ),
        ),
        WINTER,
        WILDLIFE,
    ),
    Kind(  # under water
        (
            (
                "a sea turtle | a manta ray | an octopus | a school of silver fish | a whale shark | a reef shark"
                " | a jellyfish | two dolphins | a diver | a humpback whale | a sea lion",
                "swimming | drifting | gliding",
                "in clear blue water | in the open sea | in turquoise water | near the surface | above a sandy bottom",
                " | with bubbles rising | with small fish around",
            ),
            (
                "a clownfish | a seahorse | an octopus | a moray eel | a lionfish | a hermit crab | a starfish",
                "among | next to | in front of",
                "pink corals | sea anemones | brown kelp | rocks and sponges | branching corals",
            ),
        ),
        "sunbeams from above | dim blue light | bright tropical light | dappled light | the beam of a torch",
        "an underwater photo | a wide-angle photo | a close-up | a photo",
    ),
    Kind(  # small things close by
        (
            (
                "a bumblebee | a monarch butterfly | a ladybird | a dragonfly | a green grasshopper | a snail | a moth"
                " | a small spider | a praying mantis",
                "on",
                "a sunflower | a daisy | a blade of grass | a purple thistle | a wet leaf | a fern frond | a poppy"
                " | a lavender stem | a white lily",
                " | covered in dew | with dew drops all around",
            ),
            (
                "a red rose | a white orchid | a pink peony | a blue iris | a sunflower | a tulip | a magnolia blossom"
                " | a cluster of bluebells | a yellow daffodil | a pale pink camellia",
                "with dew drops | beginning to open | in full bloom | losing its petals | bending in the breeze",
                " | among green leaves | beside an old wall | in a garden",
            ),
            (
                "a mushroom | three mushrooms | a patch of moss | an unfurling fern | a pine cone | an acorn"
                " | a fallen maple leaf | a feather | a snail shell",
                "on the forest floor | on a rotting log | among wet leaves | beside a flat stone | between tree roots",
                " | with water drops | with tiny ants",
            ),
        ),
        "dappled light | soft morning light | backlit by a low sun | overcast light | early morning mist | after rain",
        MACRO,
    ),
)
