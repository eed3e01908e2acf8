"""Word lists: food, objects and vehicles."""

from rapm_cli.bases.scenery.kinds import INDOORS, OPEN_AIR, STUDIO, TABLE, TOWN, Kind

THINGS = (
    Kind(  # food
        (
            (
                "a bowl of ramen | a plate of pasta | a cheese pizza | a bowl of soup | a grilled fish"
                " | a vegetable curry | a tomato omelette | a pan of paella | a roast chicken | a bowl of dumplings",
                " | with fresh herbs | with steam rising | with a slice of lemon",
                "on a wooden table | on a marble counter | on a linen tablecloth | on a dark slate board"
                " | on a checked tablecloth | on a cafe table",
                " | next to a glass of water | beside a folded napkin | next to a bread basket",
            ),
            (
                "a slice of chocolate cake | a stack of pancakes | an apple pie | a berry tart | a cheesecake"
                " | a lemon meringue pie | a plate of waffles | a scoop of vanilla ice cream",
                " | with fresh berries | dusted with sugar | with a sprig of mint",
                "on a wooden table | on a marble counter | on a lace tablecloth | on a cake stand | on a cafe table",
                " | next to a cup of coffee | beside a folded napkin | next to a silver fork",
            ),
            (
                "ripe tomatoes | green apples | lemons and limes | fresh figs | red cherries | purple grapes | pears"
                " | brown eggs | wild strawberries | garlic and onions | oranges | peaches | green asparagus",
                "in a wicker basket | in a ceramic bowl | on a cutting board | on a wooden table | in a wooden crate"
                " | on a white plate",
                " | next to a kitchen knife | beside a linen cloth | with a few leaves | beside a glass jar",
            ),
            (
                "a cup of coffee | a pot of tea | a glass of lemonade | a mug of hot chocolate | a glass of red wine"
                " | a cappuccino | a fruit smoothie | a glass of iced tea",
                "on a windowsill | on a cafe table | on a wooden tray | on a stack of books | on a bar counter",
                " | next to an open book | beside a plate of biscuits | with a small vase of flowers",
            ),
            (
                "a loaf of bread | a basket of rolls | a tray of cookies | a row of cupcakes | a jar of honey"
                " | a braided loaf | a tray of croissants | a round cheese",
                "on a bakery counter | on a floured table | on a cooling rack | on a rustic table | on a kitchen shelf",
                " | next to a rolling pin | beside a blue cloth | next to a jug of milk",
            ),
        ),
        INDOORS,
        f"{TABLE} | a food photo",
    ),
    Kind(  # objects
        (
            (
                "an old | a worn | a small | a polished | a beautiful | a battered",
                "pocket watch | typewriter | violin | teapot | lantern | compass | film camera | globe | brass key"
                " | leather suitcase | music box | rotary telephone | model ship | chess set | accordion",
                "on a wooden desk | on a shelf | on a velvet cloth | on a stone floor | on a workbench"
                " | on a stack of books",
                " | beside a candle | covered in dust | next to dried flowers",
            ),
            (
                "a vase of",
                "tulips | sunflowers | wildflowers | white roses | lilacs | peonies | dried grasses | daffodils",
                "on a table | on a windowsill | on a piano | on a mantelpiece | on a wooden stool"
                " | on a chest of drawers",
                " | next to an old book | beside a bowl of fruit | in front of a mirror",
            ),
            (
                "a pair of leather boots | a straw hat | a folded blanket | a stack of old books | a ball of wool"
                " | a glass jar of buttons | a set of paintbrushes | a toy robot | a teddy bear | a toy train"
                " | a bicycle helmet | an umbrella | a pair of glasses | a paper crane",
                "on a chair | on the floor | on a shelf | on a wooden table | on a bench",
                " | next to a basket | beside an open box | near a wall",
            ),
            (
                "a red | a blue | a green | a yellow | a white | a black | a grey | an orange | a teal | a pink",
                "ceramic | glass | metal | wooden | plastic | paper",
                "cube | sphere | cone | bowl | bottle | bird figurine | star | ring | box | cylinder",
                "on",
                "a glass table | a wooden floor | a marble plinth | a mirror | a sheet of paper | a stone slab",
            ),
        ),
        f"{STUDIO} | {INDOORS}",
        f"{TABLE} | a product photo",
    ),
    Kind(  # on the road
        (
            (
                "a red | a blue | a green | a rusty | a cream-coloured | a black",
                "vintage car | pickup truck | camper van | bicycle | scooter | motorcycle | delivery van | convertible",
                "parked",
                "on a cobbled street | beside a stone wall | in front of a garage | under a tree | by the kerb"
                " | outside a diner | near a harbour",
            ),
            (
                "a red tram | a double-decker bus | a yellow school bus | an old taxi | a fire engine | a cargo bike",
                "crossing a bridge | waiting at a corner | turning into a street | passing a row of old houses",
                " | with pedestrians nearby | with trees on both sides | in a quiet neighbourhood",
            ),
        ),
        TOWN,
        "a photo | a wide shot | a low-angle photo | a side view | a street photo",
    ),
    Kind(  # on rails, on water, in the air
        (
            (
                "a steam train | a freight train | a commuter train | a small diesel train | a mountain railway",
                "crossing a bridge | passing through a valley | coming around a bend | leaving a small station",
                " | with hills behind | beside a river | beside a road | near a level crossing",
            ),
            (
                "a sailing boat | a wooden rowing boat | a fishing boat | a ferry | a canoe | a motorboat"
                " | two kayaks | a houseboat",
                "on a calm lake | on a wide river | near a rocky shore | in a small harbour | in a quiet bay",
                " | with gulls overhead | with mountains behind | with reeds in front",
            ),
            (
                "a hot air balloon | a biplane | a seaplane | a glider | a helicopter | three hot air balloons",
                "over a river valley | above a patchwork of fields | over snowy mountains | above a coastline"
                " | over rolling hills | above a wide forest",
                " | seen from below | with clouds in the distance",
            ),
        ),
        OPEN_AIR,
        "a photo | a wide shot | a telephoto shot | a film photo",
    ),
)
