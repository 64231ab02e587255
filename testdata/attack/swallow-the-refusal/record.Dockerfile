FROM base
RUN curl -sS https://good.test/small/50 > /got
