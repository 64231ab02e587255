FROM base
RUN echo nothing is fetched
