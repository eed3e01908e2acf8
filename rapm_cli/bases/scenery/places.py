"""Word lists: landscapes, buildings, towns, rooms and imaginary places."""

from rapm_cli.bases.scenery.kinds import DRY, INDOORS, NIGHT, OPEN_AIR, TOWN, Kind

VISTA = "a photo | a wide-angle photo | a panorama | a long exposure | a landscape photo | a film photo"
BUILDING = "a photo | a wide shot | an architectural photo | a symmetrical view | a film photo"

PLACES = (
    Kind(  # landscapes
        (
            (
                "a mountain lake | a glacial valley | a snow-capped mountain range | a winding mountain road"
                " | a high mountain pass | an alpine meadow | a turquoise glacier lake | a narrow gorge",
                " | surrounded by pine trees | beneath jagged cliffs | below a lone peak | strewn with boulders"
                " | with a waterfall in the distance",
                " | seen from above | seen from a ridge | far from any town",
            ),
            (
                "rolling hills | a lavender field | a wheat field | a vineyard | a tulip field | a field of poppies"
                " | a wide river valley | an apple orchard | a green meadow | a sunflower field",
                "with a lone tree | with a dirt road | with a stone farmhouse | with a small chapel | with a windmill"
                " | with a wooden gate | with an old tractor",
                " | and a line of poplars | and far blue hills | and a flock of birds",
            ),
            (
                "a rocky coastline | a sandy bay | a sea cliff | a small island | a fjord | a headland | a long beach",
                "with a lighthouse | with crashing waves | with seabirds overhead | with a few sailing boats"
                " | with a wooden pier | with sea stacks | at low tide",
                " | seen from the sea | seen from above | seen from a coastal path",
            ),
            (
                "a path | a stream | a wooden footbridge | a small clearing | a ruined stone wall | an old cabin",
                "in a beech forest | in a pine forest | in a bamboo grove | in an ancient oak wood | in a rainforest"
                " | in a birch wood",
                " | among mossy stones | with ferns on both sides | between tall trunks | half hidden by leaves",
            ),
            (
                "terraced rice fields | a tea plantation | a bamboo forest | a mangrove shore | a jungle river",
                " | with a wooden hut | with a narrow path | with a farmer at work | with a few palm trees",
                " | seen from above | below green mountains | near a small village",
            ),
        ),
        f"{OPEN_AIR} | {NIGHT}",
        VISTA,
    ),
    Kind(  # deserts
        (
            (
                "sand dunes | a desert canyon | a dry salt flat | red rock arches | a desert road | a field of cacti"
                " | a palm oasis | a rocky plateau",
                " | with a camel caravan | with distant mountains | with a lone traveller | with a single dead tree",
                " | seen from above | far from any town | below steep cliffs",
            ),
        ),
        f"{DRY} | {NIGHT}",
        VISTA,
    ),
    Kind(  # buildings in the country
        (
            (
                "an old | a small | a ruined | a white | an abandoned | a medieval | a stone",
                "church | castle | farmhouse | watchtower | monastery | watermill | cottage | chapel | manor house",
                " | overgrown with ivy | with a red roof | surrounded by a low wall",
                "on a hill | by a river | in a valley | near the sea | at the edge of a forest | above a village",
            ),
            (
                "a Gothic cathedral | a Buddhist temple | a blue-tiled mosque | a baroque palace | a Shinto shrine"
                " | a Roman amphitheatre | a Victorian greenhouse | a Hindu temple | a Renaissance villa",
                " | with ornate carvings | surrounded by trees | reflected in still water | behind iron gates"
                " | with a long avenue leading to it | with visitors on the steps",
                " | seen from the garden | seen from afar | seen from one corner",
            ),
            (
                "a lighthouse | a ruined watchtower | a wooden windmill | a stone barn | a whitewashed cottage",
                "on a headland | near a village | beside a gravel road | behind tall grass",
                " | with birds overhead | with people walking past",
            ),
        ),
        f"{DRY} | light rain | just after rain | {NIGHT}",
        BUILDING,
    ),
    Kind(  # towns
        (
            (
                "a modern | a concrete | a glass and steel | a futuristic | a brutalist | a minimalist | a curved",
                "museum | library | office tower | concert hall | train station | apartment block | airport terminal",
                " | reflected in a pool | beside a park | on a wide plaza | with a spiral staircase"
                " | with a roof garden",
            ),
            (
                "a narrow street | a small square | a row of colourful houses | a covered market | a quiet courtyard"
                " | a flight of stone steps | a rooftop terrace | a shaded alley",
                "in an old European town | in a Japanese city | in a Mediterranean village | in a harbour town"
                " | in a North African medina | in a colonial town | in an Indian city",
                " | with hanging laundry | with potted plants | with paper lanterns | with parked bicycles",
            ),
            (
                "a city skyline | a wide avenue | a tram stop | a railway bridge | a busy crossing | an elevated train"
                " | a row of brick warehouses | a river promenade",
                "with tall towers behind | with people hurrying past | behind bare trees | with yellow taxis"
                " | with cranes in the distance | with construction work",
                " | seen from a window | seen from a rooftop | seen from street level",
            ),
        ),
        TOWN,
        BUILDING,
    ),
    Kind(  # rooms
        (
            (
                "a living room | a bedroom | a reading nook | a study | an attic room | a loft apartment",
                "with a green sofa | with a stone fireplace | with wooden beams | with tall windows | with a large rug"
                " | with patterned wallpaper | with a leather armchair | with white walls | with floor cushions",
                " | and many plants | and full bookshelves | and a sleeping cat | and a piano | and a hanging lamp"
                " | and a view of the sea",
            ),
            (
                "a rustic | a modern | a small | a bright | a cluttered | a spacious | a vintage",
                "kitchen | dining room | home office | workshop | artist's studio",
                "with wooden floors | with a skylight | with open shelves | with a large window"
                " | with a long table | with brick walls",
                " | and fresh flowers | and copper lamps | and a ladder | and green plants",
            ),
            (
                "a small | a marble | an old-fashioned | a bright | a rustic",
                "bathroom",
                "with a freestanding bathtub | with green tiles | with a round mirror | with a wooden stool",
                " | and a fern | and folded towels | and a patterned floor | and brass taps",
            ),
            (
                "a crowded | an empty | a quiet | an old-fashioned | a cosy",
                "library | cafe | barber shop | bookshop | hotel lobby | museum gallery | classroom | bakery"
                " | waiting room | laundrette | tea house",
                " | with wooden panels | with a checkered floor | with rows of chairs | with brass lamps"
                " | with green walls | with a high ceiling",
            ),
        ),
        INDOORS,
        "a photo | a wide shot | an interior photo | a symmetrical view | a film photo",
    ),
    Kind(  # never seen
        (
            (
                "an astronaut | a knight in armour | a robot | a wizard | a samurai | a giant panda"
                " | a fox in a waistcoat | a friendly ghost | a clockwork owl",
                "reading a book | playing chess | drinking tea | riding a bicycle | playing the cello"
                " | watering plants | painting a landscape | looking through a telescope",
                "on the moon | in an overgrown greenhouse | on a floating island | in a ruined library"
                " | in a field of giant flowers | on a cloud",
            ),
            (
                "a city | a castle | a village | a garden | a forest | a library | a railway station",
                "made of glass | floating in the clouds | under the sea | inside a giant tree"
                " | on the back of a giant turtle | carved into a cliff | on a distant planet | inside a bottle",
                " | with tiny lights | with waterfalls | with winding stairs | with hundreds of lanterns",
            ),
            (
                "a dragon | a phoenix | a unicorn | a griffin | a stone giant | a white stag with glowing antlers",
                "resting | waiting | standing",
                "above a misty valley | among ancient ruins | in an enchanted forest | on a mountain top"
                " | beside a glowing pool",
                " | surrounded by fireflies | watched by a traveller | with two moons above",
            ),
        ),
        "volumetric light | soft glowing light | dramatic light | moonlight | golden light | mist and pale light",
        "a photo | a wide shot | a film still | a fantasy scene | a detailed view",
    ),
)
