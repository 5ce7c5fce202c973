"""Unrelated text, for those who bring none: plain prose that nobody would ask a memory about."""

PROSE = """\
A lighthouse does not light the sea. Its lamp is small compared with the water around it, and most of what it sends out
is lost in the air. What makes it useful is order: every tower along a coast has a rhythm of its own, so that a sailor
who counts the seconds between two flashes knows not only that there is land but which land it is. Before electricity
the rhythm came from a clockwork that turned the lens, and the keeper had to wind it every few hours through the night.

Bread rises because yeast eats sugar and gives off gas, and because flour mixed with water forms a net that is elastic
enough to hold the gas in. Kneading lines up the strands of that net. A dough that has been worked too little tears and
stays flat; one that has been left too long collapses under its own weight. Bakers learn to judge the moment with a
finger: when a dent springs back slowly and not all the way, the loaf is ready for the oven.

Rivers seldom run straight for long. Where a bend begins, the water on the outside has farther to go and flows faster,
so it carries soil away from that bank, while on the inside it slows down and lets fall what it carried. The bend
grows, wanders down the valley, and one spring, when the water is high, the stream breaks through the narrow neck and
leaves the old loop behind as a quiet lake shaped like a horseshoe. Old maps of the same plain hardly agree on anything
but the position of the hills.

The first public libraries chained their books to the shelves. A volume could cost as much as a house, and a reader who
wanted to compare two of them had to choose seats with care. The chains were fixed to the front edge of the cover, which
is why the books stood with their backs to the wall and their pages to the room. When printing made books cheap, the
chains disappeared, the books were turned around, and titles began to be written on their spines.

Snow is quiet because of its holes. Fresh flakes do not lie flat but prop each other up, and nine tenths of what looks
like a solid blanket is air. Sound that enters it is scattered among the crystals and does not find its way out again.
After a few days the flakes sink together, the surface melts and freezes to a crust, and the same field that swallowed
every noise begins to throw it back.

To tune a piano is to spread an error evenly. If every fifth were made as pure as the ear would like it, the circle of
twelve of them would not close, and the last one would howl. So the tuner narrows each by an amount almost too small to
hear, listening for slow beats between the strings, and ends with an instrument on which no interval but the octave is
perfect and every key can be played.
"""
