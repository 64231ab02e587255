// words counts the words of its standard input.
#include <ctype.h>
#include <stdio.h>

int main(void)
{
	unsigned long words = 0;
	int inside = 0;

	for (int c; (c = getchar()) != EOF; inside = !isspace(c))
		words += !isspace(c) && !inside;
	if (ferror(stdin)) {
		perror("words");
		return 1;
	}
	printf("%lu\n", words);
	return 0;
}
