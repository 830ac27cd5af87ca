"""The text that proofs and quality are measured on: written for edgegen, a little of everything that small models meet."""

PROSE = """\
The harbour was quiet in the morning. Two boats had come in during the night, and the men who worked on them \
sat on the wall, drinking coffee from tin cups. One of them was mending a net; the other read the newspaper \
aloud, slowly, so that everyone could hear what had happened in the capital. "It will rain on Thursday," he \
said, and nobody disagreed.

Water boils at 100 degrees Celsius at sea level, and at about 95 degrees at a height of 1,500 metres, because \
the pressure of the air is lower there. This is why pasta takes longer to cook in the mountains. The same \
effect is used in a pressure cooker, but in the other direction: inside the closed pot the pressure rises, the\
 water stays liquid above 100 degrees, and the food is done sooner.

To sort a list of numbers, compare the first two and exchange them if they are in the wrong order. Then go on \
to the next pair. When you reach the end of the list, the largest number has moved to the last place. Repeat \
this for the rest of the list until nothing has to be exchanged any more. In Python, one would simply write:

def largest(numbers):
    best = numbers[0]
    for number in numbers[1:]:
        if number > best:
            best = number
    return best

Question: What is the capital of France?
Answer: The capital of France is Paris. It lies on the river Seine and has about two million inhabitants.

My grandmother kept bees. In the spring she would walk from hive to hive, listening before she opened \
anything, because a healthy colony sounds different from a hungry one. She taught me to move slowly and to \
wear light clothes. In a good year we filled forty jars of honey and gave most of them away to the neighbours,\
 who brought us apples and eggs in return.
"""
