FROM base
RUN curl -sS http://good.test/small/52
